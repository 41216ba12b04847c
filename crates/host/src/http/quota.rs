//! Quotas, current usage, and groups.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::StatusCode;
use kohakuriver_api::{
    CreateGroup, ErrorBody, Group, GroupQuotaUse, Held, Member, Note, Quota, QuotaUse, UpdateGroup,
};
use kohakuriver_model::account::group_name;
use kohakuriver_model::{Holdings, UserId};
use kohakuriver_store::{GroupRow, UserRow};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::AuditTarget;
use super::users;
use crate::access::Caller;
use crate::accounts::LoginError;
use crate::host::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(own_quota))
        .routes(routes!(user_quota))
        .routes(routes!(list_groups, create_group))
        .routes(routes!(update_group, delete_group))
        .routes(routes!(add_member, remove_member))
}

pub fn from_api(quota: Quota) -> kohakuriver_model::Quota {
    kohakuriver_model::Quota {
        instances: quota.instances,
        cores: quota.cores,
        memory_bytes: quota.memory_bytes,
        gpus: quota.gpus,
        gpu_hours: quota.gpu_hours,
        disk_bytes: quota.disk_bytes,
    }
}

fn to_api(quota: kohakuriver_model::Quota) -> Quota {
    Quota {
        instances: quota.instances,
        cores: quota.cores,
        memory_bytes: quota.memory_bytes,
        gpus: quota.gpus,
        gpu_hours: quota.gpu_hours,
        disk_bytes: quota.disk_bytes,
    }
}

fn held(holdings: Holdings) -> Held {
    Held {
        instances: holdings.instances,
        cores: holdings.cores,
        memory_bytes: holdings.memory_bytes,
        gpus: holdings.gpus,
        gpu_hours: holdings.gpu_hours,
        disk_bytes: holdings.disk_bytes,
    }
}

/// Returns the caller's quota and usage, and those of the caller's groups.
#[utoipa::path(get, path = "/api/auth/quota", tag = "accounts",
    responses((status = 200, body = QuotaUse), (status = 503, body = ErrorBody)))]
async fn own_quota(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<QuotaUse>, ApiError> {
    let person = caller.account().ok_or(LoginError::Off)?;
    Ok(Json(quota_use(&app, &users::find(&app, person.id.0).await?).await?))
}

/// Returns an account's quota and usage.
#[utoipa::path(get, path = "/api/auth/users/{id}/quota", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = QuotaUse), (status = 404, body = ErrorBody)))]
async fn user_quota(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
) -> Result<Json<QuotaUse>, ApiError> {
    Ok(Json(quota_use(&app, &users::find(&app, id).await?).await?))
}

async fn quota_use(app: &App, user: &UserRow) -> Result<QuotaUse, ApiError> {
    let now_ms = app.clock.now_ms();
    let mut groups = Vec::new();
    for group in app.store.list_groups().await? {
        if group.members.iter().any(|(id, _)| *id == user.id) {
            let holdings = app.store.group_holdings(group.id, now_ms).await?;
            let (name, quota) = (group.name, to_api(group.quota));
            groups.push(GroupQuotaUse { name, quota, held: held(holdings) });
        }
    }
    let holdings = app.store.holdings(user.id, now_ms).await?;
    Ok(QuotaUse { quota: to_api(user.quota), held: held(holdings), groups })
}

fn group_to_api(row: GroupRow) -> Group {
    let member = |(id, username): (UserId, String)| Member { id: id.0, username };
    Group {
        id: row.id.0,
        name: row.name,
        quota: to_api(row.quota),
        auto_approve: row.auto_approve.map(to_api),
        members: row.members.into_iter().map(member).collect(),
    }
}

/// Lists all groups by name.
#[utoipa::path(get, path = "/api/auth/groups", tag = "accounts", responses((status = 200, body = [Group])))]
async fn list_groups(State(app): State<Arc<App>>) -> Result<Json<Vec<Group>>, ApiError> {
    Ok(Json(app.store.list_groups().await?.into_iter().map(group_to_api).collect()))
}

/// Creates a group.
#[utoipa::path(post, path = "/api/auth/groups", tag = "accounts", request_body = CreateGroup,
    responses((status = 200, body = Group), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn create_group(
    State(app): State<Arc<App>>,
    body: Result<Json<CreateGroup>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    let Json(CreateGroup { name }) = body?;
    let name = group_name(&name).map_err(|error| users::invalid(error.to_string()))?;
    let id = app.store.create_group(&name, app.clock.now_ms()).await?;
    answer(&app, id.0).await
}

async fn find(app: &App, id: i64) -> Result<GroupRow, ApiError> {
    let groups = app.store.list_groups().await?;
    groups.into_iter().find(|row| row.id.0 == id).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "unknown_group", format!("there is no group {id}"))
            .hint("kohakuriver auth group list")
    })
}

async fn answer(app: &App, id: i64) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    let row = find(app, id).await?;
    Ok((Extension(AuditTarget(format!("group {}", row.name))), Json(group_to_api(row))))
}

/// Changes a group's quota, or the rule under which requests need no operator.
#[utoipa::path(patch, path = "/api/auth/groups/{id}", tag = "accounts", params(("id" = i64, Path)), request_body = UpdateGroup,
    responses((status = 200, body = Group), (status = 404, body = ErrorBody)))]
async fn update_group(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
    body: Result<Json<UpdateGroup>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    let Json(request) = body?;
    let row = find(&app, id).await?;
    let (quota, rule) = (request.quota.map(from_api), request.auto_approve.map(from_api));
    let rule = if request.no_auto_approve { Some(None) } else { rule.as_ref().map(Some) };
    app.store.change_group(row.id, quota.as_ref(), rule).await?;
    answer(&app, id).await
}

/// Deletes a group and the shares it has.
#[utoipa::path(delete, path = "/api/auth/groups/{id}", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn delete_group(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
) -> Result<(Extension<AuditTarget>, Json<Note>), ApiError> {
    let row = find(&app, id).await?;
    app.store.delete_group(row.id).await?;
    app.accounts.changed();
    let message = format!("group '{}' deleted", row.name);
    Ok((Extension(AuditTarget(format!("group {}", row.name))), Json(Note { message })))
}

/// Adds an account to a group.
#[utoipa::path(put, path = "/api/auth/groups/{id}/members/{user}", tag = "accounts",
    params(("id" = i64, Path), ("user" = i64, Path)),
    responses((status = 200, body = Group), (status = 404, body = ErrorBody)))]
async fn add_member(
    State(app): State<Arc<App>>,
    Path((id, user)): Path<(i64, i64)>,
) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    set_member(&app, id, user, true).await
}

/// Removes an account from a group.
#[utoipa::path(delete, path = "/api/auth/groups/{id}/members/{user}", tag = "accounts",
    params(("id" = i64, Path), ("user" = i64, Path)),
    responses((status = 200, body = Group), (status = 404, body = ErrorBody)))]
async fn remove_member(
    State(app): State<Arc<App>>,
    Path((id, user)): Path<(i64, i64)>,
) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    set_member(&app, id, user, false).await
}

async fn set_member(
    app: &App,
    id: i64,
    user: i64,
    member: bool,
) -> Result<(Extension<AuditTarget>, Json<Group>), ApiError> {
    let group = find(app, id).await?;
    let user = users::find(app, user).await?;
    app.store.set_member(group.id, user.id, member).await?;
    app.accounts.changed();
    let made = AuditTarget(format!("group {} user {}", group.name, user.username));
    Ok((Extension(made), Json(group_to_api(find(app, id).await?))))
}
