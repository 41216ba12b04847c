//! Requests that wait for an operator.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use kohakuriver_api::{ErrorBody, Message, Rejected, Task};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::vps::authorize_named;
use crate::access::{Caller, Permission};
use crate::host::App;
use crate::instances::{self, approval, visible};

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_pending))
        .routes(routes!(approve))
        .routes(routes!(reject))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    limit: Option<usize>,
    offset: Option<usize>,
}

/// Lists the pending requests, oldest first.
#[utoipa::path(get, path = "/api/tasks/pending-approval", tag = "approval", params(PageQuery),
    responses((status = 200, body = [Task]), (status = 403, body = ErrorBody)))]
async fn list_pending(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<Vec<Task>>, ApiError> {
    let Query(query) = query?;
    let mut tasks = visible::list(&app, &caller).await?;
    tasks.retain(|task| task.status == "pending_approval");
    tasks.reverse();
    let page = tasks.into_iter().skip(query.offset.unwrap_or(0));
    Ok(Json(page.take(query.limit.unwrap_or(100).min(1000)).collect()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ApproveQuery {
    /// The `approval_revision` that the operator read. A request that has changed since is refused.
    /// Without it, the current request is approved.
    revision: Option<String>,
}

/// Approves a request and creates its instance, if there is capacity now; otherwise it stays
/// pending.
#[utoipa::path(post, path = "/api/approve/{task}", tag = "approval", params(ApproveQuery, ("task" = String, Path)),
    responses((status = 200, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn approve(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ApproveQuery>, QueryRejection>,
) -> Result<Json<Message>, ApiError> {
    let Query(query) = query?;
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let row = approval::approve(&app, &caller, &access, query.revision.as_deref()).await?;
    let name = instances::display_name(row.id, &row.spec);
    let message = format!("VPS {name} is approved and is being created on '{}'", row.node_name);
    Ok(Json(Message { message, task_id: row.id.to_string() }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RejectQuery {
    /// Reported to the request's owner.
    reason: Option<String>,
}

/// Rejects a request.
#[utoipa::path(post, path = "/api/reject/{task}", tag = "approval", params(RejectQuery, ("task" = String, Path)),
    responses((status = 200, body = Rejected), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn reject(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<RejectQuery>, QueryRejection>,
) -> Result<Json<Rejected>, ApiError> {
    let Query(query) = query?;
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let reason = query.reason.filter(|text| !text.trim().is_empty());
    let row = approval::reject(&app, &caller, &access, reason).await?;
    let message = format!("the request {} is rejected", row.id);
    Ok(Json(Rejected { message, task_id: row.id.to_string(), reason: row.reason }))
}
