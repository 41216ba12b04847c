//! Login by OpenID Connect: redirects to the provider and back.

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
use crate::oidc::{Callback, Oidc, OidcError, Waiting};

/// The cookie of the browser that started a login.
const BROWSER_COOKIE: &str = "kohakuriver_oidc";
const CONFIRM_PAGE: &str = include_str!("confirm.html");

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(oidc_start))
        .routes(routes!(oidc_callback))
        .routes(routes!(oidc_confirm_page, oidc_confirm))
        .routes(routes!(oidc_token))
}

fn oidc(app: &App) -> Result<&Oidc, ApiError> {
    Ok(app.oidc.as_ref().ok_or(OidcError::Off)?)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct StartQuery {
    /// For a command line: the local port where it waits.
    port: Option<u16>,
    /// For a command line: the SHA-256, base64url, of the verifier it will send.
    challenge: Option<String>,
}

/// Redirects the browser to the provider.
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
            let detail = "a command-line login needs a port and a challenge of 43 characters";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", detail));
        }
    };
    let oidc = oidc(&app)?;
    // Starts are bounded: the memory of one displaces the starts of others.
    let now_ms = app.clock.steady_ms();
    app.accounts.throttle.admit("", caller.address, now_ms).map_err(LoginError::from)?;
    let started = oidc.start(&app, waiting).await?;
    let mut response = Redirect::to(&started.url).into_response();
    set_cookie(&mut response, &browser_cookie(&started.browser, 600, secure));
    Ok(response)
}

/// Checks for 256 bits in base64url.
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
    /// The state that the host sent, to find the login again.
    #[serde(default)]
    state: String,
    /// The code that the host exchanges for an ID token.
    #[serde(default)]
    code: String,
    /// Of a refusal: the provider's error code.
    error: Option<String>,
    /// Of a refusal: the provider's description.
    error_description: Option<String>,
}

/// Receives the browser back from the provider: starts a session, or redirects to the page that
/// confirms a command line's login. An account whose groups have no role any more loses its role,
/// sessions and tokens.
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
    let (mut response, username) =
        match oidc(&app)?.handle_callback(&app, &query.state, code, browser).await {
            Ok(Callback::Browser { session }) => {
                let mut response = Redirect::to("/welcome").into_response();
                set_cookie(&mut response, &session_cookie(&session, secure));
                set_cookie(&mut response, &browser_cookie("", 0, secure));
                (response, session.user.username)
            }
            Ok(Callback::CommandLine { ticket, username }) => {
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

/// The ticket of the confirmation page and its form.
#[derive(Debug, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
struct Ticket {
    /// As the callback issued it.
    #[serde(default)]
    ticket: String,
}

/// Returns the page that confirms a command line's login, with the code that the command line
/// displays too.
#[utoipa::path(get, path = "/api/auth/oidc/confirm", tag = "accounts", params(Ticket),
    responses((status = 200, content_type = "text/html"), (status = 400, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn oidc_confirm_page(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    query: Result<Query<Ticket>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Ticket { ticket }) = query?;
    let question = oidc(&app)?.confirmation(&app, &ticket, cookie(&headers, BROWSER_COOKIE))?;
    let port = question.port.to_string();
    // Names of our own, digits and capitals: none of them contains markup.
    let html = CONFIRM_PAGE
        .replace("{username}", &question.username)
        .replace("{port}", &port)
        .replace("{code}", &question.code)
        .replace("{ticket}", &ticket);
    // Browsers apply this to redirects of a form too, and the next one leads to that port.
    let policy = format!("form-action 'self' http://127.0.0.1:{port}");
    Ok(page(&html, &policy, "same-origin"))
}

/// Confirms a command line's login: starts the session and redirects the browser to the command
/// line's port with a code for it. Only the host's own page may call this.
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
    // Other origins were rejected before; a form submission always sends its own.
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

/// Exchanges a command line's code for its session, once.
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
