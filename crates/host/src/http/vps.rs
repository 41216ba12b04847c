//! VPSes: create, list, status, events.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use http::StatusCode;
use kohakuriver_api::{
    AssignedNode, CreateVps, CreatedVps, ErrorBody, Event, RunnerResponse, SshKey, Task,
};
use kohakuriver_model::{BackendKind, InstanceSpec, Role, Status};
use kohakuriver_store::EventRow;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::AuditDetail;
use crate::access::{Authorized, Caller, Permission, authorize};
use crate::clock::iso;
use crate::host::App;
use crate::instances::approval::{self, Created};
use crate::instances::{self, visible};

/// The longest wait of a long poll; proxies close longer ones.
const LONGEST_POLL: u64 = 30;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create_vps))
        .routes(routes!(list_vps))
        .routes(routes!(list_active_vps))
        .routes(routes!(list_my_vps))
        .routes(routes!(get_status))
        .routes(routes!(list_events))
        .routes(routes!(list_keys))
}

/// Authorizes the caller for the instance that a text identifies.
pub async fn authorize_named(
    app: &App,
    caller: &Caller,
    text: &str,
    permission: Permission,
) -> Result<Authorized, ApiError> {
    let id = match permission {
        Permission::Enter | Permission::Secrets => {
            instances::find_to_enter(app, caller, text).await?
        }
        Permission::See | Permission::Change | Permission::Delete | Permission::Share => {
            instances::find(app, caller, text).await?
        }
    };
    Ok(authorize(app, caller, permission, id).await.map_err(instances::denied(text))?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CreateQuery {
    /// `false` responds at once; the client then waits by polling.
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

/// Creates a VPS. If it cannot be started, it is removed (with `wait`), or remains as `failed`
/// until it is deleted (without).
#[utoipa::path(post, path = "/api/vps/create", tag = "vps", params(CreateQuery), request_body = CreateVps,
    responses((status = 200, body = CreatedVps), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn create_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<CreateQuery>, QueryRejection>,
    body: Result<Json<CreateVps>, JsonRejection>,
) -> Result<(Option<Extension<AuditDetail>>, Json<CreatedVps>), ApiError> {
    let Query(query) = query?;
    let Json(mut request) = body?;
    let generated = generate_key(&mut request)?;
    let row = match approval::create(&app, &caller, &request).await? {
        Created::Instance(row) => *row,
        Created::Requested(row) => {
            let access = authorize(&app, &caller, Permission::See, row.id).await?;
            let task = visible::one(&app, &caller, &access).await?;
            return Ok((None, pending_response(&request, task, generated)));
        }
    };
    let access = authorize(&app, &caller, Permission::See, row.id).await?;
    let mut task = visible::one(&app, &caller, &access).await?;
    let mut message = "VPS is being created".to_owned();
    if query.wait {
        task = instances::wait_settled(&app, &access).await?;
        if task.status != Status::Running.as_str() && task.error_code.is_some() {
            instances::remove_failed(&app, &caller, &access).await?;
            return Err(failed(task));
        }
        message = "VPS created".to_owned();
    }
    let (ssh_private_key, ssh_public_key) = generated.unzip();
    let detail = unconfined(&row.spec).map(|text| Extension(AuditDetail(text)));
    let created = CreatedVps {
        message,
        task_id: row.id.to_string(),
        vps_backend: task.vps_backend.clone(),
        ssh_key_mode: request.ssh_key_mode,
        ssh_port: row.ssh_port.map_or(0, u32::from),
        assigned_node: AssignedNode { hostname: row.node_name.to_string(), url: None },
        status: task.status.clone(),
        runner_response: RunnerResponse {
            success: task.status == Status::Running.as_str(),
            ssh_port: row.ssh_port.map_or(0, u32::from),
            container_name: match row.spec.backend() {
                BackendKind::Docker => format!("kohakuriver-vps-{}", row.id),
                BackendKind::Qemu => String::new(),
            },
            vm_ip: task.vm_ip.clone(),
        },
        vm_ip: task.vm_ip.clone(),
        task,
        ssh_private_key,
        ssh_public_key,
    };
    Ok((detail, Json(created)))
}

/// Describes how it is less confined than a container, if it is.
fn unconfined(spec: &InstanceSpec) -> Option<String> {
    let privileged = spec.privileged.then(|| "privileged".to_owned());
    let mounts = spec.mounts.iter().map(|mount| format!("mounts {mount}"));
    let all: Vec<String> = privileged.into_iter().chain(mounts).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Builds the response to a create that waits for an operator.
fn pending_response(
    request: &CreateVps,
    task: Task,
    generated: Option<(String, String)>,
) -> Json<CreatedVps> {
    let (ssh_private_key, ssh_public_key) = generated.unzip();
    Json(CreatedVps {
        message: "VPS requested: an operator has to approve it".to_owned(),
        task_id: task.task_id.clone(),
        vps_backend: task.vps_backend.clone(),
        ssh_key_mode: request.ssh_key_mode.clone(),
        ssh_port: 0,
        assigned_node: AssignedNode { hostname: String::new(), url: None },
        status: task.status.clone(),
        runner_response: RunnerResponse {
            success: false,
            ssh_port: 0,
            container_name: String::new(),
            vm_ip: None,
        },
        vm_ip: None,
        task,
        ssh_private_key,
        ssh_public_key,
    })
}

fn failed(task: Task) -> ApiError {
    let code = task.error_code.unwrap_or_else(|| "failed".to_owned());
    let detail = task.error_message.unwrap_or_else(|| "the node could not create it".to_owned());
    let error = ApiError::new(StatusCode::BAD_GATEWAY, &code, detail);
    match task.error_hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Generates a key pair, whose private half is only in the response.
fn generate_key(request: &mut CreateVps) -> Result<Option<(String, String)>, ApiError> {
    if request.ssh_key_mode != "generate" {
        return Ok(None);
    }
    let broken = |_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "generating an SSH key failed")
    };
    let mut key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(broken)?;
    key.set_comment("kohakuriver");
    let private = key.to_openssh(LineEnding::LF).map_err(broken)?.to_string();
    let public = key.public_key().to_openssh().map_err(broken)?;
    request.ssh_public_key = Some(public.clone());
    Ok(Some((private, public)))
}

/// Lists all VPSes that the caller may see, and requests; newest first.
#[utoipa::path(get, path = "/api/vps", tag = "vps", responses((status = 200, body = [Task])))]
async fn list_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Task>>, ApiError> {
    Ok(Json(visible::list(&app, &caller).await?))
}

/// Lists the VPSes that run, start, wait for an operator, or are lost; newest first.
#[utoipa::path(get, path = "/api/vps/status", tag = "vps", responses((status = 200, body = [Task])))]
async fn list_active_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Task>>, ApiError> {
    let mut tasks = visible::list(&app, &caller).await?;
    tasks.retain(|task| task.status.parse().is_ok_and(Status::is_active));
    Ok(Json(tasks))
}

/// Lists the VPSes that belong to the caller or are shared with the caller; all of them where login
/// is disabled. Newest first.
#[utoipa::path(get, path = "/api/vps/my", tag = "vps", responses((status = 200, body = [Task])))]
async fn list_my_vps(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<Task>>, ApiError> {
    Ok(Json(visible::mine(&app, &caller).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct StatusQuery {
    /// The last known `revision`: the response waits until it changes.
    since: Option<u64>,
    /// Maximum wait in seconds; up to 30.
    timeout: Option<u64>,
}

/// Returns a task by id, unique id prefix or name.
#[utoipa::path(get, path = "/api/status/{task}", tag = "vps", params(StatusQuery, ("task" = String, Path)),
    responses((status = 200, body = Task), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn get_status(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Result<Json<Task>, ApiError> {
    let Query(query) = query?;
    let limit = Duration::from_secs(query.timeout.unwrap_or(LONGEST_POLL).min(LONGEST_POLL));
    let id = instances::wait_for_change(&app, &caller, &text, query.since, limit).await?;
    let access =
        authorize(&app, &caller, Permission::See, id).await.map_err(instances::denied(&text))?;
    Ok(Json(visible::one(&app, &caller, &access).await?))
}

/// Lists the public keys that may log in to a VPS; `PATCH /api/vps/{task}` changes them.
#[utoipa::path(get, path = "/api/vps/{task}/keys", tag = "vps", params(("task" = String, Path)),
    responses((status = 200, body = [SshKey]), (status = 404, body = ErrorBody)))]
async fn list_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Vec<SshKey>>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let row = instances::get(&app, &access).await?;
    let lines = row.spec.ssh.map(|ssh| ssh.authorized_keys).unwrap_or_default();
    Ok(Json(instances::keys::describe(&lines)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// The number of newest events; up to 1000, default 200.
    limit: Option<u32>,
}

/// Lists the events of a VPS and their actors, oldest first. A deleted VPS is found by its whole
/// id.
#[utoipa::path(get, path = "/api/vps/{task}/events", tag = "vps", params(EventsQuery, ("task" = String, Path)),
    responses((status = 200, body = [Event]), (status = 404, body = ErrorBody)))]
async fn list_events(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let Query(query) = query?;
    let id = match authorize_named(&app, &caller, &text, Permission::See).await {
        Ok(access) => access.task_id(),
        // A deleted instance has no owner; accounts that run the cluster may still read its events.
        Err(unknown) if caller.role() >= Role::Operator => {
            app.store.resolve_event_instance(&text).await?.ok_or(unknown)?
        }
        Err(unknown) => return Err(unknown),
    };
    let limit = query.limit.unwrap_or(200).clamp(1, 1000);
    let rows = app.store.list_events(id, limit).await?;
    let event = |row: EventRow| Event {
        id: row.id,
        task_id: row.instance.to_string(),
        at: iso(row.at_ms),
        kind: row.kind,
        actor: row.actor,
        detail: row.detail,
    };
    Ok(Json(rows.into_iter().map(event).collect()))
}
