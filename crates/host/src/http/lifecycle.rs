//! Lifecycle operations of a VPS: stop, kill, restart, pause, resume, update, delete.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use kohakuriver_api::{ErrorBody, Message, UpdateVps};
use kohakuriver_model::{Act, Desired, Status};
use kohakuriver_store::{InstanceRow, RequestRow};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::vps::authorize_named;
use crate::access::{Caller, Permission};
use crate::host::App;
use crate::instances::{self, InstanceError, approval, snapshots, validate};

/// Existing clients of pausing read the outcome from the response.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(stop_vps))
        .routes(routes!(stop_vps_alias))
        .routes(routes!(kill_vps))
        .routes(routes!(restart_vps))
        .routes(routes!(pause_vps))
        .routes(routes!(resume_vps))
        .routes(routes!(command_vps))
        .routes(routes!(update_vps, delete_vps))
}

type Accepted = Result<(StatusCode, Json<Message>), ApiError>;

/// Stops a VPS; its disk stays.
#[utoipa::path(post, path = "/api/vps/stop/{task}", tag = "lifecycle", params(("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn stop_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Accepted {
    change(&app, &caller, &text, Act::Stop, "is stopping").await
}

/// Stops a VPS, under the path of some existing clients.
#[utoipa::path(post, path = "/api/vps/{task}/stop", tag = "lifecycle", params(("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn stop_vps_alias(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Accepted {
    change(&app, &caller, &text, Act::Stop, "is stopping").await
}

/// Ends a VPS without a grace period; its disk stays.
#[utoipa::path(post, path = "/api/kill/{task}", tag = "lifecycle", params(("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn kill_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Accepted {
    change(&app, &caller, &text, Act::Kill, "is being killed").await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RestartQuery {
    /// Start on the disk of this snapshot (a tag, a name or `latest`); the current content of the
    /// disk is lost.
    from_snapshot: Option<String>,
}

/// Starts a stopped VPS, or restarts a running one, with its disk.
#[utoipa::path(post, path = "/api/vps/restart/{task}", tag = "lifecycle", params(RestartQuery, ("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn restart_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<RestartQuery>, QueryRejection>,
) -> Accepted {
    let Query(query) = query?;
    let Some(which) = query.from_snapshot else {
        return change(&app, &caller, &text, Act::Restart, "is restarting").await;
    };
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    let row = snapshots::restore(&app, &caller, &access, Some(&which)).await?;
    Ok(accepted(&app, &row, "is being restored"))
}

/// Freezes every process of a running VPS; it holds its resources.
#[utoipa::path(post, path = "/api/vps/pause/{task}", tag = "lifecycle", params(("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn pause_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Accepted {
    change(&app, &caller, &text, Act::Pause, "is pausing").await
}

/// Resumes a paused VPS.
#[utoipa::path(post, path = "/api/vps/resume/{task}", tag = "lifecycle", params(("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn resume_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Accepted {
    change(&app, &caller, &text, Act::Resume, "is resuming").await
}

/// Pauses or resumes as existing clients request it: responds when done, and says "successfully"
/// only then.
#[utoipa::path(post, path = "/api/command/{task}/{command}", tag = "lifecycle",
    params(("task" = String, Path), ("command" = String, Path)),
    responses((status = 200, body = Message), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn command_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((text, command)): Path<(String, String)>,
) -> Result<Json<Message>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    let (act, done) = match command.as_str() {
        "pause" => (Act::Pause, "paused"),
        "resume" => (Act::Resume, "running"),
        other => {
            let detail = format!("'{other}' is not a command");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_command", detail)
                .hint("use pause or resume"));
        }
    };
    let row = instances::act(&app, &caller, &access, act).await?;
    let task = instances::wait_for_act(&app, &access, COMMAND_LIMIT).await?;
    let name = instances::display_name(row.id, &row.spec);
    let message = if task.status == done {
        format!("VPS {name} {command}d successfully")
    } else {
        let why = task.error_message.unwrap_or_else(|| format!("it is {}", task.status));
        format!("VPS {name} could not be {command}d yet: {why}")
    };
    Ok(Json(Message { message, task_id: row.id.to_string() }))
}

/// Changes limits and policies. Limits apply at once where the backend supports it; otherwise at
/// the next start, as the task's `warning` says.
#[utoipa::path(patch, path = "/api/vps/{task}", tag = "lifecycle", params(("task" = String, Path)), request_body = UpdateVps,
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn update_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<UpdateVps>, JsonRejection>,
) -> Accepted {
    let Json(change) = body?;
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    if change.add_ssh_keys.is_some() {
        // A key gives access, so adding keys requires access.
        authorize_named(&app, &caller, &text, Permission::Enter).await?;
    }
    let detail = serde_json::to_string(&change).unwrap_or_default();
    let edit = |spec: &kohakuriver_model::InstanceSpec| validate::update(spec, &change);
    let fewer =
        UpdateVps { remove_ssh_keys: change.remove_ssh_keys.clone(), ..UpdateVps::default() };
    let act = if change == fewer { Act::RemoveKeys } else { Act::Update };
    let row = instances::act_with(&app, &caller, &access, act, detail, edit).await?;
    Ok(accepted(&app, &row, "is being updated"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    /// Also a running VPS.
    #[serde(default)]
    force: bool,
}

/// Deletes a VPS, its disk and its snapshots.
#[utoipa::path(delete, path = "/api/vps/{task}", tag = "lifecycle", params(DeleteQuery, ("task" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn delete_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Accepted {
    let Query(query) = query?;
    change(&app, &caller, &text, Act::Delete { force: query.force }, "is being deleted").await
}

async fn change(app: &App, caller: &Caller, text: &str, act: Act, outcome: &str) -> Accepted {
    let permission = match act {
        Act::Delete { .. } => Permission::Delete,
        Act::Stop
        | Act::Kill
        | Act::Restart
        | Act::Restore
        | Act::Pause
        | Act::Resume
        | Act::Update
        | Act::RemoveKeys => Permission::Change,
    };
    let access = authorize_named(app, caller, text, permission).await?;
    if let Some(row) = approval::lookup(app, &access).await? {
        return withdraw(app, row, act).await;
    }
    Ok(accepted(app, &instances::act(app, caller, &access, act).await?, outcome))
}

/// An act that ends an instance withdraws the request for one.
async fn withdraw(app: &App, row: RequestRow, act: Act) -> Accepted {
    let status = approval::status(&row);
    if !matches!(act, Act::Stop | Act::Kill | Act::Delete { .. }) {
        let error = InstanceError::NotNow {
            name: row.id.to_string(),
            status,
            transition: None,
            possible: &["delete"],
            act: act.verb(),
        };
        return Err(error.into());
    }
    approval::withdraw(app, &row).await?;
    let outcome = if status == Status::Rejected { "is deleted" } else { "is withdrawn" };
    let message = format!("the request {} {outcome}", row.id);
    Ok((StatusCode::ACCEPTED, Json(Message { message, task_id: row.id.to_string() })))
}

/// Builds the response: what was recorded, and what delays it.
pub fn accepted(app: &App, row: &InstanceRow, outcome: &str) -> (StatusCode, Json<Message>) {
    let name = instances::display_name(row.id, &row.spec);
    let mut message = format!("VPS {name} {outcome}");
    if !app.runners.is_online(&row.node_id) {
        let node = &row.node_name;
        message = format!("{message} once node '{node}' is back: node '{node}' is offline");
        if row.intent.desired == Desired::Deleted {
            message.push_str(&format!(
                "; if it never comes back, an admin can have the cluster forget it and all its VPSes: \
                 kohakuriver node remove {node} --force"
            ));
        }
    } else if let Some(trouble) = app.runners.progress(row.id).and_then(|progress| progress.trouble)
    {
        message = format!("{message}; delayed: {}", trouble.message);
    }
    (StatusCode::ACCEPTED, Json(Message { message, task_id: row.id.to_string() }))
}
