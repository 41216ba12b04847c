//! Logging in by OpenID Connect: the ways out to the provider and back.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Json};
use http::{HeaderMap, StatusCode};
use kohakuriver_api::{ErrorBody, OidcHandover, OidcSession, Secret};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{session_cookie, set_cookie};
use super::error::ApiError;
use super::guard::Made;
use crate::access::Caller;
use crate::accounts::{LoginError, cookie};
use crate::client_address::Secure;
use crate::host::App;
use crate::oidc::{Oidc, OidcError, Waiting};

/// What the browser that began a log-in has.
const BROWSER_COOKIE: &str = "kohakuriver_oidc";

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(oidc_start))
        .routes(routes!(oidc_callback))
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
        (Some(port), Some(challenge)) if challenge.len() == 43 => Some(Waiting { port, challenge }),
        (None, None) => None,
        (_, _) => {
            let detail = "a command line gives a port and a challenge of 43 characters";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", detail));
        }
    };
    let oidc = oidc(&app)?;
    // What a start remembers pushes out what others have begun.
    let now_ms = app.clock.now_ms();
    app.accounts.throttle.admit("", caller.address, now_ms).map_err(LoginError::from)?;
    let started = oidc.start(&app, waiting).await?;
    let mut response = Redirect::to(&started.url).into_response();
    let only_tls = if secure.is_some_and(|Extension(Secure(yes))| yes) { "; Secure" } else { "" };
    let cookie = format!(
        "{BROWSER_COOKIE}={}; HttpOnly; Max-Age=600; Path=/api/auth/oidc; SameSite=Lax{only_tls}",
        started.browser
    );
    set_cookie(&mut response, &cookie);
    Ok(response)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CallbackQuery {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
    error: Option<String>,
    error_description: Option<String>,
}

/// Where the provider sends the browser back to.
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
            let plain = text.trim().chars().filter(|c| !c.is_control()).take(200).collect();
            Err(plain)
        }
    };
    let arrived =
        oidc(&app)?.arrive(&app, &query.state, code, cookie(&headers, BROWSER_COOKIE)).await?;
    let mut response = Redirect::to(&arrived.url).into_response();
    if let Some(session) = &arrived.session {
        set_cookie(&mut response, &session_cookie(session, secure));
    }
    let gone = format!("{BROWSER_COOKIE}=; HttpOnly; Max-Age=0; Path=/api/auth/oidc; SameSite=Lax");
    set_cookie(&mut response, &gone);
    response.extensions_mut().insert(Made(format!("user {}", arrived.username)));
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
