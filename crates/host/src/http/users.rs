//! Accounts, invitations and password resets, for callers that run the cluster.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::StatusCode;
use kohakuriver_api::{
    CreateInvitation, CreateReset, ErrorBody, Invitation, Note, PasswordReset, Secret, UpdateUser,
    User,
};
use kohakuriver_model::{GroupId, Role, UserId};
use kohakuriver_store::{InvitationRow, NewInvitation, UserChange, UserRow};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::user;
use super::error::ApiError;
use super::guard::AuditTarget;
use super::quota;
use crate::access::Caller;
use crate::accounts::{digest, mask_secret, millis, new_secret};
use crate::clock::iso;
use crate::host::App;

const HOUR: Duration = Duration::from_secs(3600);

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_users))
        .routes(routes!(update_user, delete_user))
        .routes(routes!(create_reset))
        .routes(routes!(list_invitations, create_invitation))
        .routes(routes!(delete_invitation))
}

/// Lists all accounts, newest first.
#[utoipa::path(get, path = "/api/auth/users", tag = "accounts",
    responses((status = 200, body = [User]), (status = 403, body = ErrorBody)))]
async fn list_users(State(app): State<Arc<App>>) -> Result<Json<Vec<User>>, ApiError> {
    Ok(Json(app.store.list_users().await?.iter().map(user).collect()))
}

pub fn invalid(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
}

/// Changes an account: display name, role, quota, whether it is active. Disabling it ends its
/// sessions and credentials at once.
#[utoipa::path(patch, path = "/api/auth/users/{id}", tag = "accounts", params(("id" = i64, Path)), request_body = UpdateUser,
    responses((status = 200, body = User), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn update_user(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<i64>,
    body: Result<Json<UpdateUser>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<User>), ApiError> {
    let Json(request) = body?;
    let id = UserId(id);
    let role = request.role.as_deref().map(str::parse::<Role>).transpose();
    let role = role.map_err(|error| bad(&error.to_string()))?;
    if role == Some(Role::Anony) {
        return Err(bad("an account's role is at least viewer; disable the account to block it"));
    }
    if caller.user_id() == Some(id) {
        if role.is_some_and(|role| role < caller.role()) {
            return Err(bad("you cannot lower your own role"));
        }
        if request.is_active == Some(false) {
            return Err(bad("you cannot disable your own account"));
        }
    }
    let display_name = request.display_name.filter(|name| !name.trim().is_empty());
    if display_name.as_ref().is_some_and(|name| name.chars().count() > 100) {
        return Err(invalid("a display name has at most 100 characters"));
    }
    let change = UserChange {
        display_name,
        role,
        is_active: request.is_active,
        quota: request.quota.map(quota::from_api),
        password: None,
        end_tokens: false,
    };
    let row = app.store.change_user(id, &change).await?;
    app.accounts.changed();
    Ok((made(&row), Json(user(&row))))
}

fn bad(detail: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid", detail)
}

fn made(row: &UserRow) -> Extension<AuditTarget> {
    Extension(AuditTarget(format!("user {}", row.username)))
}

/// Deletes an account that owns no VPS. Its number is never reused.
#[utoipa::path(delete, path = "/api/auth/users/{id}", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = Note), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn delete_user(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<(Extension<AuditTarget>, Json<Note>), ApiError> {
    if caller.user_id() == Some(UserId(id)) {
        return Err(bad("you cannot delete your own account"));
    }
    let row = app.store.delete_user(UserId(id)).await?;
    app.accounts.changed();
    let message = format!("user '{}' deleted", row.username);
    Ok((made(&row), Json(Note { message })))
}

/// Creates a token that sets an account's new password. Earlier ones become void; so does this one
/// if the admin that created it loses that role.
#[utoipa::path(post, path = "/api/auth/users/{id}/reset", tag = "accounts", params(("id" = i64, Path)), request_body = CreateReset,
    responses((status = 200, body = PasswordReset), (status = 404, body = ErrorBody)))]
async fn create_reset(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<i64>,
    body: Result<Json<CreateReset>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<PasswordReset>), ApiError> {
    let Json(request) = body?;
    let hours = request.expires_hours.unwrap_or(24).clamp(1, 720);
    let row = find(&app, id).await?;
    let by = caller.user_id();
    let (secret, expires_ms) = app.accounts.create_reset(&app, row.id, HOUR * hours, by).await?;
    let reset = PasswordReset { token: Secret(secret), expires_at: iso(expires_ms) };
    Ok((made(&row), Json(reset)))
}

/// Reads an account by its number.
pub async fn find(app: &App, id: i64) -> Result<UserRow, ApiError> {
    let row = app.store.lookup_user(UserId(id)).await?;
    row.ok_or_else(|| kohakuriver_store::UserError::Unknown.into())
}

/// Lists all invitations, newest first; of each token only the beginning.
#[utoipa::path(get, path = "/api/auth/invitations", tag = "accounts",
    responses((status = 200, body = [Invitation]), (status = 403, body = ErrorBody)))]
async fn list_invitations(State(app): State<Arc<App>>) -> Result<Json<Vec<Invitation>>, ApiError> {
    let now_ms = app.clock.now_ms();
    let rows = app.store.list_invitations().await?;
    Ok(Json(rows.into_iter().map(|row| invitation(row, None, now_ms)).collect()))
}

/// Creates an invitation. Operators invite viewers, admins any role. The token is returned only
/// once, and is valid while its creator may still invite for that role.
#[utoipa::path(post, path = "/api/auth/invitations", tag = "accounts", request_body = CreateInvitation,
    responses((status = 200, body = Invitation), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
async fn create_invitation(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Result<Json<CreateInvitation>, JsonRejection>,
) -> Result<(Extension<AuditTarget>, Json<Invitation>), ApiError> {
    let Json(request) = body?;
    let role: Role = request.role.parse().map_err(|error| bad(&format!("{error}")))?;
    if role == Role::Anony {
        return Err(bad("an account's role is at least viewer"));
    }
    if caller.role() < Role::Admin && role != Role::Viewer {
        let detail = "an operator can invite viewers only";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail).hint("ask an admin"));
    }
    if !(1..=720).contains(&request.expires_hours) || !(1..=1000).contains(&request.max_usage) {
        return Err(invalid("an invitation is valid for 1 to 720 hours and 1 to 1000 uses"));
    }
    let group = request.group_id.map(GroupId);
    if let Some(group) = group
        && !app.store.list_groups().await?.iter().any(|row| row.id == group)
    {
        return Err(bad("there is no such group"));
    }
    if group.is_some() && caller.role() < Role::Admin {
        let detail = "only an admin can invite into a group";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "role", detail));
    }
    let secret = new_secret();
    let now_ms = app.clock.now_ms();
    let new = NewInvitation {
        hash: digest(&secret),
        shown: mask_secret(&secret),
        role,
        group,
        max_usage: request.max_usage,
        expires_ms: now_ms + millis(HOUR * request.expires_hours),
        created_by: caller.user_id(),
    };
    let row = app.store.create_invitation(&new, now_ms).await?;
    let made = AuditTarget(format!("invitation {} as {role}", row.id));
    Ok((Extension(made), Json(invitation(row, Some(secret), now_ms))))
}

/// Revokes an invitation.
#[utoipa::path(delete, path = "/api/auth/invitations/{id}", tag = "accounts", params(("id" = i64, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody)))]
async fn delete_invitation(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
) -> Result<Json<Note>, ApiError> {
    if !app.store.delete_invitation(id).await? {
        let detail = format!("there is no invitation {id}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_invitation", detail)
            .hint("kohakuriver auth invitations"));
    }
    Ok(Json(Note { message: "Invitation revoked".to_owned() }))
}

fn invitation(row: InvitationRow, secret: Option<String>, now_ms: i64) -> Invitation {
    let remaining_uses = row.max_usage.saturating_sub(row.usage_count);
    Invitation {
        id: row.id,
        token: Secret(secret.unwrap_or(row.shown)),
        role: row.role.to_string(),
        group_id: row.group.map(|group| group.0),
        max_usage: row.max_usage,
        usage_count: row.usage_count,
        remaining_uses,
        expires_at: iso(row.expires_ms),
        is_valid: remaining_uses > 0 && row.expires_ms > now_ms,
        created_by_id: row.created_by.map(|user| user.0),
        created_at: iso(row.created_ms),
    }
}
