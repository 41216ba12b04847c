//! The routes of the audit log.

use http::header::AUTHORIZATION;
use kohakuriver_api::{AuditEntry, AuditVerified};
use reqwest::{Method, Response};

use super::{Api, Call};
use crate::error::CommandError;

/// The largest body of an error.
const LONGEST_REFUSAL: usize = 64 * 1024;

impl Api {
    /// Returns entries, newest first; oldest first with `after`. `query`: actor, action, object,
    /// before, after, since, limit.
    pub async fn audit(&self, query: &[(&str, String)]) -> Result<Vec<AuditEntry>, CommandError> {
        self.send(Call { query, ..Call::new(Method::GET, "/api/audit") }).await
    }

    /// Verifies the whole log, which may take long.
    pub async fn verify_audit(&self) -> Result<AuditVerified, CommandError> {
        self.send(Call { limit: None, ..Call::new(Method::GET, "/api/audit/verify") }).await
    }

    /// Streams all entries, oldest first, as JSON lines; read them with [`Api::more`].
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

    /// Returns the next block of a streamed response.
    pub async fn more(&self, answer: &mut Response) -> Result<Option<bytes::Bytes>, CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        answer.chunk().await.map_err(|error| self.unreachable(way, &error))
    }
}
