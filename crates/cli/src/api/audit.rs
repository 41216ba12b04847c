//! The routes of the audit log.

use http::header::AUTHORIZATION;
use kohakuriver_api::{AuditEntry, AuditVerified};
use reqwest::{Method, Response};

use super::{Api, Call};
use crate::error::CommandError;

/// What a refusal may have.
const LONGEST_REFUSAL: usize = 64 * 1024;

impl Api {
    /// Newest first; oldest first with `after`. `query`: actor, action, object, before, after,
    /// since, limit.
    pub async fn audit(&self, query: &[(&str, String)]) -> Result<Vec<AuditEntry>, CommandError> {
        self.send(Call { query, ..Call::new(Method::GET, "/api/audit") }).await
    }

    /// Walks the whole log, which may be long.
    pub async fn verify_audit(&self) -> Result<AuditVerified, CommandError> {
        self.send(Call { limit: None, ..Call::new(Method::GET, "/api/audit/verify") }).await
    }

    /// All of it, oldest first, a line of JSON each: read block by block with [`Api::more`].
    pub async fn export_audit(&self) -> Result<Response, CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let mut request = way.client.get(format!("{}/api/audit/export", way.base));
        if let Some(bearer) = &way.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let mut answer = request.send().await.map_err(|error| self.unreachable(way, &error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let mut body = Vec::new();
        while let Some(block) = self.more(&mut answer).await? {
            body.extend_from_slice(&block);
            if body.len() > LONGEST_REFUSAL {
                break;
            }
        }
        Err(self.refusal(status, &body))
    }

    /// The next block of a long answer.
    pub async fn more(&self, answer: &mut Response) -> Result<Option<bytes::Bytes>, CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        answer.chunk().await.map_err(|error| self.unreachable(way, &error))
    }
}
