//! Log-in, log-out and the caller's own account.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, StatusCode};
use kohakuriver_api::{
    AuthStatus, ChangePassword, ErrorBody, LoggedIn, Login, Note, Register, ResetPassword, User,
};
use kohakuriver_store::UserRow;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::{AuditTarget, SkipAudit};
use crate::access::{Caller, Principal};
use crate::accounts::{self, COOKIE_NAME, LoginError, Session};
use crate::client_address::Secure;
use crate::clock::iso;
use crate::host::App;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(auth_status))
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(register))
        .routes(routes!(me))
        .routes(routes!(change_password))
        .routes(routes!(reset_password))
}

/// Converts an account, for callers that may list accounts.
pub fn user(row: &UserRow) -> User {
    User {
        id: row.id.0,
        username: row.username.clone(),
        display_name: Some(row.display_name.clone()),
        is_active: row.is_active,
        role: row.role.to_string(),
        created_at: Some(iso(row.created_ms)),
        external: row.external.is_some(),
    }
}

/// Returns whether login is enabled. Public.
#[utoipa::path(get, path = "/api/auth/status", tag = "accounts", responses((status = 200, body = AuthStatus)))]
async fn auth_status(State(app): State<Arc<App>>) -> Json<AuthStatus> {
    let auth = &app.config.auth;
    let hours = u32::try_from(auth.session_life.as_secs() / 3600).unwrap_or(u32::MAX);
    Json(AuthStatus {
        auth_enabled: auth.enabled,
        session_expire_hours: auth.enabled.then_some(hours),
        needs_setup: auth.enabled && !app.store.has_admin().await.unwrap_or(true),
        oidc: app.oidc.is_some(),
    })
}

/// Logs in. The response sets the session's cookie.
#[utoipa::path(post, path = "/api/auth/login", tag = "accounts", request_body = Login,
    responses((status = 200, body = LoggedIn), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn login(
    State(app): State<Arc<App>>,
    caller: Caller,
    secure: Option<Extension<Secure>>,
    body: Result<Json<Login>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(Login { username, password }) = body?;
    let named = AuditTarget(format!("user {}", username.chars().take(50).collect::<String>()));
    match app.accounts.log_in(&app, &username, password.0, &caller).await {
        Ok(session) => {
            let mut response = logged_in("Logged in", session, secure);
            response.extensions_mut().insert(SkipAudit);
            Ok(response)
        }
        Err(error) => {
            let mut response = ApiError::from(error).into_response();
            response.extensions_mut().insert(named);
            Ok(response)
        }
    }
}

/// Ends the session of the cookie. Without a session nothing is written, and no rights are checked
/// again.
#[utoipa::path(post, path = "/api/auth/logout", tag = "accounts", responses((status = 200, body = Note)))]
async fn logout(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let secret = accounts::cookie(&headers, COOKIE_NAME).filter(|text| accounts::is_secret(text));
    let ended = match secret {
        Some(secret) => app.store.delete_session(&accounts::digest(secret)).await?,
        None => false,
    };
    if ended {
        app.accounts.changed();
    }
    let gone = format!("{COOKIE_NAME}=; HttpOnly; Max-Age=0; Path=/; SameSite=Lax");
    let mut response = Json(Note { message: "Logged out".to_owned() }).into_response();
    set_cookie(&mut response, &gone);
    if !ended {
        response.extensions_mut().insert(SkipAudit);
    }
    Ok(response)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RegisterQuery {
    /// The invitation's token.
    #[serde(default)]
    token: String,
}

/// Creates the account of an invitation and logs in.
#[utoipa::path(post, path = "/api/auth/register", tag = "accounts", params(RegisterQuery), request_body = Register,
    responses((status = 200, body = LoggedIn), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn register(
    State(app): State<Arc<App>>,
    caller: Caller,
    secure: Option<Extension<Secure>>,
    query: Result<Query<RegisterQuery>, QueryRejection>,
    body: Result<Json<Register>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let Json(mut request) = body?;
    request.display_name = request.display_name.filter(|name| !name.trim().is_empty());
    if request.display_name.as_ref().is_some_and(|name| name.chars().count() > 100) {
        let detail = "a display name has at most 100 characters";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail));
    }
    let session = app.accounts.register(&app, &query.token, request, caller.address).await?;
    Ok(logged_in("Registered", session, secure))
}

/// Returns the caller's account. A caller without a login is `_anonymous`.
#[utoipa::path(get, path = "/api/auth/me", tag = "accounts",
    responses((status = 200, body = User), (status = 503, body = ErrorBody)))]
async fn me(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<User>, ApiError> {
    match &caller.principal {
        Principal::AuthDisabled { .. } => Err(LoginError::Off.into()),
        Principal::Anonymous => Ok(Json(User {
            id: -1,
            username: "_anonymous".to_owned(),
            role: caller.role().to_string(),
            is_active: true,
            ..User::default()
        })),
        Principal::Account(person) => {
            let row = app.store.lookup_user(person.id).await?;
            let row = row.ok_or_else(ApiError::log_in)?;
            // Limited by the credential.
            Ok(Json(User { role: person.role.to_string(), ..user(&row) }))
        }
    }
}

/// Changes the caller's password. All other sessions end; with `end_tokens`, all tokens and keys
/// too.
#[utoipa::path(post, path = "/api/auth/password", tag = "accounts", request_body = ChangePassword,
    responses((status = 200, body = LoggedIn), (status = 401, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn change_password(
    State(app): State<Arc<App>>,
    caller: Caller,
    secure: Option<Extension<Secure>>,
    body: Result<Json<ChangePassword>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let person = caller.account().ok_or(LoginError::Off)?;
    let session = app.accounts.change_password(&app, person, request, caller.address).await?;
    Ok(logged_in("Password changed", session, secure))
}

/// Sets a password with a link that an admin created.
#[utoipa::path(post, path = "/api/auth/password/reset", tag = "accounts", request_body = ResetPassword,
    responses((status = 200, body = LoggedIn), (status = 400, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn reset_password(
    State(app): State<Arc<App>>,
    caller: Caller,
    secure: Option<Extension<Secure>>,
    body: Result<Json<ResetPassword>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let session = app.accounts.reset_password(&app, request, caller.address).await?;
    Ok(logged_in("Password set", session, secure))
}

/// Builds the response that starts a session.
pub fn logged_in(message: &str, session: Session, secure: Option<Extension<Secure>>) -> Response {
    let named = AuditTarget(format!("user {}", session.user.username));
    let body = LoggedIn { message: message.to_owned(), user: user(&session.user) };
    let mut response = Json(body).into_response();
    set_cookie(&mut response, &session_cookie(&session, secure));
    response.extensions_mut().insert(named);
    response
}

/// Returns the session's cookie: sent to this host only, and over TLS only where the log-in came by
/// TLS.
pub fn session_cookie(session: &Session, secure: Option<Extension<Secure>>) -> String {
    let secure = secure.is_some_and(|Extension(Secure(secure))| secure);
    let only_tls = if secure { "; Secure" } else { "" };
    format!(
        "{COOKIE_NAME}={}; HttpOnly; Max-Age={}; Path=/; SameSite=Lax{only_tls}",
        session.secret,
        session.life.as_secs()
    )
}

pub fn set_cookie(response: &mut Response, cookie: &str) {
    if let Ok(mut value) = HeaderValue::from_str(cookie) {
        value.set_sensitive(true);
        response.headers_mut().append(SET_COOKIE, value);
    }
}
