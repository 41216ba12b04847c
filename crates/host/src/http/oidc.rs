//! Logging in by OpenID Connect: the ways out to the provider and back.

use std::sync::Arc;

use axum::extract::rejection::{FormRejection, JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form, Json};
use http::header::ORIGIN;
use http::{HeaderMap, StatusCode};
use kohakuriver_api::{ErrorBody, OidcHandover, OidcSession, Secret};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{session_cookie, set_cookie};
use super::error::ApiError;
use super::guard::AuditTarget;
use super::page::page;
use crate::access::Caller;
use crate::accounts::{LoginError, cookie};
use crate::client_address::Secure;
use crate::host::App;
use crate::oidc::{Arrived, Oidc, OidcError, Waiting};

/// What the browser that began a log-in has.
const BROWSER_COOKIE: &str = "kohakuriver_oidc";
const CONFIRM_PAGE: &str = include_str!("confirm.html");

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(oidc_start))
        .routes(routes!(oidc_callback))
        .routes(routes!(oidc_question, oidc_confirm))
        .routes(routes!(oidc_token))
}

fn oidc(app: &App) -> Result<&Oidc, ApiError> {
    Ok(app.oidc.as_ref().ok_or(OidcError::Off)?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct StartQuery {
    /// Of a command line: the port on the person's machine where it waits.
    port: Option<u16>,
    /// Of a command line: the SHA-256, base64url, of what it will show.
    challenge: Option<String>,
}

/// Sends the browser to the provider.
#[utoipa::path(get, path = "/api/auth/oidc/start", tag = "accounts", params(StartQuery),
    responses((status = 303), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_start(
    State(app): State<Arc<App>>,
    caller: Caller,
    secure: Option<Extension<Secure>>,
    query: Result<Query<StartQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let waiting = match (query.port, query.challenge) {
        (Some(port), Some(challenge)) if is_challenge(&challenge) => {
            Some(Waiting { port, challenge })
        }
        (None, None) => None,
        (_, _) => {
            let detail = "a command line gives a port and a challenge of 43 characters";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", detail));
        }
    };
    let oidc = oidc(&app)?;
    // What a start remembers pushes out what others have begun.
    let now_ms = app.clock.steady_ms();
    app.accounts.throttle.admit("", caller.address, now_ms).map_err(LoginError::from)?;
    let started = oidc.start(&app, waiting).await?;
    let mut response = Redirect::to(&started.url).into_response();
    set_cookie(&mut response, &browser_cookie(&started.browser, 600, secure));
    Ok(response)
}

/// 256 bits in base64url.
fn is_challenge(text: &str) -> bool {
    text.len() == 43 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn browser_cookie(value: &str, seconds: u32, secure: Option<Extension<Secure>>) -> String {
    let only_tls = if secure.is_some_and(|Extension(Secure(yes))| yes) { "; Secure" } else { "" };
    format!(
        "{BROWSER_COOKIE}={value}; HttpOnly; Max-Age={seconds}; Path=/api/auth/oidc; \
         SameSite=Lax{only_tls}"
    )
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CallbackQuery {
    /// What the host sent along, to find the log-in again.
    #[serde(default)]
    state: String,
    /// What the host exchanges for an ID token.
    #[serde(default)]
    code: String,
    /// Of a refusal: the provider's code for it.
    error: Option<String>,
    /// Of a refusal: the provider's words for it.
    error_description: Option<String>,
}

/// Takes the browser back from the provider: a session begins, or the browser goes to the page
/// that asks whether a command line may have one. An account whose groups have no role any more
/// loses its role, sessions and tokens.
#[utoipa::path(get, path = "/api/auth/oidc/callback", tag = "accounts", params(CallbackQuery),
    responses((status = 303), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_callback(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    secure: Option<Extension<Secure>>,
    query: Result<Query<CallbackQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let code = match query.error {
        None => Ok(query.code.as_str()),
        Some(error) => {
            let text = format!("{error} {}", query.error_description.unwrap_or_default());
            Err(crate::oidc::printable(&text, 200))
        }
    };
    let browser = cookie(&headers, BROWSER_COOKIE);
    let (mut response, username) = match oidc(&app)?.arrive(&app, &query.state, code, browser).await
    {
        Ok(Arrived::Browser { session }) => {
            let mut response = Redirect::to("/welcome").into_response();
            set_cookie(&mut response, &session_cookie(&session, secure));
            set_cookie(&mut response, &browser_cookie("", 0, secure));
            (response, session.user.username)
        }
        Ok(Arrived::CommandLine { ticket, username }) => {
            let page = format!("/api/auth/oidc/confirm?ticket={ticket}");
            (Redirect::to(&page).into_response(), username)
        }
        Err(OidcError::NoRole { username: Some(username) }) => {
            let refused = OidcError::NoRole { username: None };
            (ApiError::from(refused).into_response(), username)
        }
        Err(error) => return Err(error.into()),
    };
    response.extensions_mut().insert(AuditTarget(format!("user {username}")));
    Ok(response)
}

/// What opens the page and comes back with its button.
#[derive(Debug, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
struct Ticket {
    /// As the callback gave it.
    #[serde(default)]
    ticket: String,
}

/// Shows the page that asks whether a command line may log in, with the code that it shows too.
#[utoipa::path(get, path = "/api/auth/oidc/confirm", tag = "accounts", params(Ticket),
    responses((status = 200, content_type = "text/html"), (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_question(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    query: Result<Query<Ticket>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Ticket { ticket }) = query?;
    let question = oidc(&app)?.question(&app, &ticket, cookie(&headers, BROWSER_COOKIE))?;
    let port = question.port.to_string();
    // All of these are names of ours, digits and capitals: nothing in them is markup.
    let html = CONFIRM_PAGE
        .replace("{username}", &question.username)
        .replace("{port}", &port)
        .replace("{code}", &question.code)
        .replace("{ticket}", &ticket);
    // Browsers hold redirects of a form to this as well, and the next one leads to that port.
    let policy = format!("form-action 'self' http://127.0.0.1:{port}");
    Ok(page(&html, &policy, "same-origin"))
}

/// Logs a command line in, after the page's button was pressed: begins the session and sends the
/// browser to the command line's port with a code for it. Only the host's own page may call this.
#[utoipa::path(post, path = "/api/auth/oidc/confirm", tag = "accounts",
    request_body(content = Ticket, content_type = "application/x-www-form-urlencoded"),
    responses((status = 303), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_confirm(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    secure: Option<Extension<Secure>>,
    body: Result<Form<Ticket>, FormRejection>,
) -> Result<Response, ApiError> {
    let Form(Ticket { ticket }) = body.map_err(|error| {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", error.body_text())
    })?;
    // Another origin was refused before; a press of the button always names its own.
    if !headers.contains_key(ORIGIN) {
        return Err(ApiError::foreign_page());
    }
    let browser = cookie(&headers, BROWSER_COOKIE);
    let (url, username) = oidc(&app)?.confirm(&app, &ticket, browser).await?;
    let mut response = Redirect::to(&url).into_response();
    set_cookie(&mut response, &browser_cookie("", 0, secure));
    response.extensions_mut().insert(AuditTarget(format!("user {username}")));
    Ok(response)
}

/// Gives a command line the session that its browser has got for it, once.
#[utoipa::path(post, path = "/api/auth/oidc/token", tag = "accounts", request_body = OidcHandover,
    responses((status = 200, body = OidcSession), (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_token(
    State(app): State<Arc<App>>,
    body: Result<Json<OidcHandover>, JsonRejection>,
) -> Result<Json<OidcSession>, ApiError> {
    let Json(OidcHandover { code, verifier }) = body?;
    let session = oidc(&app)?.hand_over(&app, &code.0, &verifier.0)?;
    Ok(Json(OidcSession { session: Secret(session) }))
}
