//! Requests that wait for an operator, and with whom instances are shared.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use kohakuriver_api::{
    Assigned, Assignment, Assignments, ErrorBody, Message, Note, Rejected, SetOwner, SetShare, Task,
};
use kohakuriver_model::{ShareLevel, UserId};
use kohakuriver_store::{CreateError, Grantee, NewEvent, StoreError, UserError};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::users::{find, invalid};
use super::vps::reach;
use crate::access::{Authorized, Caller, Wish};
use crate::clock::iso;
use crate::host::App;
use crate::instances::{self, requested, shown};

/// More at once is a mistake.
const MOST_USERS: usize = 200;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_pending))
        .routes(routes!(approve))
        .routes(routes!(reject))
        .routes(routes!(assign))
        .routes(routes!(unassign))
        .routes(routes!(list_assignments))
        .routes(routes!(set_share, delete_share))
        .routes(routes!(set_owner))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    limit: Option<usize>,
    offset: Option<usize>,
}

/// What waits for an operator, oldest first.
#[utoipa::path(get, path = "/api/tasks/pending-approval", tag = "approval", params(PageQuery),
    responses((status = 200, body = [Task]), (status = 403, body = ErrorBody)))]
async fn list_pending(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<Vec<Task>>, ApiError> {
    let Query(query) = query?;
    let mut tasks = shown::list(&app, &caller).await?;
    tasks.retain(|task| task.status == "pending_approval");
    tasks.reverse();
    let page = tasks.into_iter().skip(query.offset.unwrap_or(0));
    Ok(Json(page.take(query.limit.unwrap_or(100).min(1000)).collect()))
}

/// Makes what was asked for, if there is room for it now; else it goes on waiting.
#[utoipa::path(post, path = "/api/approve/{task}", tag = "approval", params(("task" = String, Path)),
    responses((status = 200, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
async fn approve(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Message>, ApiError> {
    let access = reach(&app, &caller, &text, Wish::See).await?;
    let row = requested::approve(&app, &caller, &access).await?;
    let name = instances::display_name(row.id, &row.spec);
    let message = format!("VPS {name} is approved and being created on '{}'", row.node_name);
    Ok(Json(Message { message, task_id: row.id.to_string() }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RejectQuery {
    /// Told to whoever asked.
    reason: Option<String>,
}

/// Says no to a request.
#[utoipa::path(post, path = "/api/reject/{task}", tag = "approval", params(RejectQuery, ("task" = String, Path)),
    responses((status = 200, body = Rejected), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn reject(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<RejectQuery>, QueryRejection>,
) -> Result<Json<Rejected>, ApiError> {
    let Query(query) = query?;
    let access = reach(&app, &caller, &text, Wish::See).await?;
    let reason = query.reason.filter(|text| !text.trim().is_empty());
    let row = requested::reject(&app, &caller, &access, reason).await?;
    let message = format!("the request {} is rejected", row.id);
    Ok(Json(Rejected { message, task_id: row.id.to_string(), reason: row.reason }))
}

/// Shares a VPS with users, who may then use it.
#[utoipa::path(post, path = "/api/vps/{task}/assign", tag = "sharing", params(("task" = String, Path)), request_body = [i64],
    responses((status = 200, body = Assigned), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn assign(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<Vec<i64>>, JsonRejection>,
) -> Result<Json<Assigned>, ApiError> {
    let Json(mut users) = body?;
    let access = instance(&app, &caller, &text).await?;
    users.dedup();
    if users.len() > MOST_USERS {
        return Err(invalid(format!("at most {MOST_USERS} users at once")));
    }
    for user in &users {
        find(&app, *user).await?;
    }
    for user in &users {
        share(&app, &caller, &access, Grantee::User(UserId(*user)), ShareLevel::Use).await?;
    }
    Ok(Json(Assigned {
        message: "Users assigned".to_owned(),
        task_id: access.task_id().as_u64(),
        assigned_users: users,
    }))
}

/// Ends a user's share of a VPS. Whoever is inside is out within seconds.
#[utoipa::path(delete, path = "/api/vps/{task}/assign/{user}", tag = "sharing",
    params(("task" = String, Path), ("user" = i64, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn unassign(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((text, user)): Path<(String, i64)>,
) -> Result<Json<Note>, ApiError> {
    let access = instance(&app, &caller, &text).await?;
    unshare(&app, &caller, &access, Grantee::User(UserId(user)), &user.to_string()).await
}

/// The users a VPS is shared with.
#[utoipa::path(get, path = "/api/vps/{task}/assignments", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Assignments), (status = 404, body = ErrorBody)))]
async fn list_assignments(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Assignments>, ApiError> {
    let access = reach(&app, &caller, &text, Wish::See).await?;
    let shares = app.store.list_shares(access.task_id()).await?;
    let assignment = |share: kohakuriver_store::ShareRow| match share.to {
        Grantee::User(user) => Some(Assignment {
            user_id: user.0,
            username: share.name,
            display_name: share.display_name,
            assigned_at: iso(share.created_ms),
            level: share.level.to_string(),
        }),
        Grantee::Group(_) => None,
    };
    Ok(Json(Assignments {
        task_id: access.task_id().as_u64(),
        assignments: shares.into_iter().filter_map(assignment).collect(),
    }))
}

/// Shares a VPS with a user or a group, at another level than before where it is shared already.
#[utoipa::path(put, path = "/api/vps/{task}/shares", tag = "sharing", params(("task" = String, Path)), request_body = SetShare,
    responses((status = 200, body = Task), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn set_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<SetShare>, JsonRejection>,
) -> Result<Json<Task>, ApiError> {
    let Json(wish) = body?;
    let access = instance(&app, &caller, &text).await?;
    let level = wish.level.parse().map_err(|error| invalid(format!("{error}")))?;
    let (to, _) = grantee(&app, wish.user.as_deref(), wish.group.as_deref()).await?;
    share(&app, &caller, &access, to, level).await?;
    Ok(Json(shown::one(&app, &caller, &access).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ShareQuery {
    user: Option<String>,
    group: Option<String>,
}

/// Ends a share. Whoever is inside by it is out within seconds.
#[utoipa::path(delete, path = "/api/vps/{task}/shares", tag = "sharing", params(ShareQuery, ("task" = String, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn delete_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ShareQuery>, QueryRejection>,
) -> Result<Json<Note>, ApiError> {
    let Query(query) = query?;
    let access = instance(&app, &caller, &text).await?;
    let (to, name) = grantee(&app, query.user.as_deref(), query.group.as_deref()).await?;
    unshare(&app, &caller, &access, to, &name).await
}

/// Gives a VPS to somebody else.
#[utoipa::path(post, path = "/api/vps/{task}/owner", tag = "sharing", params(("task" = String, Path)), request_body = SetOwner,
    responses((status = 200, body = Note), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn set_owner(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<SetOwner>, JsonRejection>,
) -> Result<Json<Note>, ApiError> {
    let Json(SetOwner { user }) = body?;
    let access = instance(&app, &caller, &text).await?;
    let row = app.store.lookup_username(&user).await?.ok_or(UserError::Unknown)?;
    match app.store.set_owner(access.task_id(), row.id).await {
        Ok(()) => {}
        Err(StoreError::Conflict { .. }) => {
            let name = instances::get(&app, &access).await?.spec.name;
            let taken = name.map(CreateError::NameTaken);
            return Err(taken.unwrap_or(CreateError::Decided).into());
        }
        Err(error) => return Err(error.into()),
    }
    note(&app, &caller, &access, "owner", row.username.clone()).await?;
    let message = format!("the VPS belongs to '{}' now", row.username);
    Ok(Json(Note { message }))
}

/// The proof that the caller may share an instance; a request cannot be shared.
async fn instance(app: &App, caller: &Caller, text: &str) -> Result<Authorized, ApiError> {
    let access = reach(app, caller, text, Wish::Share).await?;
    instances::get(app, &access).await?;
    Ok(access)
}

/// Who is meant, and their name.
async fn grantee(
    app: &App,
    user: Option<&str>,
    group: Option<&str>,
) -> Result<(Grantee, String), ApiError> {
    match (user, group) {
        (Some(name), None) => {
            let row = app.store.lookup_username(name).await?.ok_or_else(|| {
                let detail = format!("there is no user '{name}'");
                ApiError::new(StatusCode::NOT_FOUND, "unknown_user", detail)
            })?;
            Ok((Grantee::User(row.id), row.username))
        }
        (None, Some(name)) => {
            let groups = app.store.list_groups().await?;
            let row = groups.into_iter().find(|row| row.name.eq_ignore_ascii_case(name));
            let row = row.ok_or_else(|| {
                let detail = format!("there is no group '{name}'");
                ApiError::new(StatusCode::NOT_FOUND, "unknown_group", detail)
            })?;
            Ok((Grantee::Group(row.id), row.name))
        }
        (Some(_), Some(_)) | (None, None) => Err(invalid("name either a user or a group")),
    }
}

async fn share(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    to: Grantee,
    level: ShareLevel,
) -> Result<(), ApiError> {
    app.store.set_share(access.task_id(), to, level, app.clock.now_ms()).await?;
    let shares = app.store.list_shares(access.task_id()).await?;
    let name = shares.into_iter().find(|share| share.to == to).map(|share| share.name);
    note(app, caller, access, "share", format!("{} {level}", name.unwrap_or_default())).await
}

async fn unshare(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    to: Grantee,
    name: &str,
) -> Result<Json<Note>, ApiError> {
    if !app.store.delete_share(access.task_id(), to).await? {
        let detail = format!("the VPS is not shared with '{name}'");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_shared", detail));
    }
    note(app, caller, access, "unshare", name.to_owned()).await?;
    Ok(Json(Note { message: format!("the VPS is not shared with '{name}' any more") }))
}

/// Writes it into the instance's history, and has those who are inside looked at again.
async fn note(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    kind: &'static str,
    detail: String,
) -> Result<(), ApiError> {
    let event = NewEvent { kind, actor: caller.name(), detail };
    app.store.record_event(access.task_id(), &event, app.clock.now_ms()).await?;
    app.accounts.changed();
    app.changes.notify();
    Ok(())
}
