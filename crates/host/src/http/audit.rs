//! The audit log: queries, verification, export.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::CONTENT_TYPE;
use kohakuriver_api::{AuditEntry, AuditVerified, ErrorBody};
use kohakuriver_store::{AuditFilter, AuditRow, StoreError, Verified};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::SkipAudit;
use super::users::invalid;
use crate::clock::iso;
use crate::host::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_audit))
        .routes(routes!(verify_audit))
        .routes(routes!(export_audit))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// A user name.
    actor: Option<String>,
    /// The whole action or its first part: `vps` is all of `vps.create`, `vps.stop` ...
    action: Option<String>,
    object: Option<String>,
    /// Only entries before this number.
    before: Option<i64>,
    /// Only entries after this number, oldest first, for clients that follow the log. Such a query
    /// is not itself recorded.
    after: Option<i64>,
    /// Only entries since this time, ISO 8601.
    since: Option<String>,
    /// Up to 1000; default 100.
    limit: Option<u32>,
}

/// Lists entries of the audit log, newest first, or those after a number, oldest first.
#[utoipa::path(get, path = "/api/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = [AuditEntry]), (status = 403, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn list_audit(
    State(app): State<Arc<App>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let since = query.since.as_deref().map(str::parse::<jiff::Timestamp>).transpose();
    let since = since.map_err(|_| invalid("'since' is not a time such as 2026-01-31T12:00:00Z"))?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = AuditFilter {
        actor: given(query.actor),
        action: given(query.action),
        object: given(query.object),
        before: query.before,
        after: query.after,
        since_ms: since.map(jiff::Timestamp::as_millisecond),
        limit: query.limit.unwrap_or(100).clamp(1, 1000),
    };
    let rows = app.store.list_audit(&filter).await?;
    let entries: Vec<_> = rows.into_iter().map(entry).collect();
    let mut response = Json(entries).into_response();
    if query.after.is_some() {
        response.extensions_mut().insert(SkipAudit);
    }
    Ok(response)
}

/// Verifies the whole chain: detects changed or removed entries.
#[utoipa::path(get, path = "/api/audit/verify", tag = "audit", responses((status = 200, body = AuditVerified)))]
async fn verify_audit(State(app): State<Arc<App>>) -> Result<Json<AuditVerified>, ApiError> {
    Ok(Json(match app.store.verify_audit().await? {
        Verified::Intact { entries, pruned, last } => AuditVerified {
            intact: true,
            entries,
            pruned,
            last_hash: Some(last).filter(|hash| !hash.is_empty()),
            broken_at: None,
        },
        Verified::Broken { seq } => AuditVerified {
            intact: false,
            entries: (seq - 1).unsigned_abs(),
            pruned: 0,
            last_hash: None,
            broken_at: Some(seq),
        },
    }))
}

/// Exports the whole log, oldest first, one JSON object per line.
#[utoipa::path(get, path = "/api/audit/export", tag = "audit",
    responses((status = 200, body = String, content_type = "application/x-ndjson", description = "One entry a line.")))]
async fn export_audit(State(app): State<Arc<App>>) -> Response {
    let pages = try_unfold((app, 0), |(app, seq)| async move {
        let page = app.store.audit_after(seq).await?;
        let Some(last) = page.last().map(|row| row.seq) else { return Ok(None) };
        let mut lines = Vec::new();
        for row in page {
            serde_json::to_writer(&mut lines, &entry(row)).unwrap_or_default();
            lines.push(b'\n');
        }
        Ok::<_, StoreError>(Some((Bytes::from(lines), (app, last))))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pages)).into_response()
}

fn entry(row: AuditRow) -> AuditEntry {
    let AuditRow { seq, entry, hash } = row;
    AuditEntry {
        seq,
        at: iso(entry.at_ms),
        actor: entry.actor,
        actor_id: entry.actor_id,
        address: entry.address,
        action: entry.action,
        object: entry.object,
        result: entry.result,
        detail: entry.detail,
        hash,
    }
}
