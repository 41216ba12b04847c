//! The page behind the links that let people in: the first admin's, invitations, new passwords.
//! What the link is for stands behind its `#`, which no browser sends and no log has.

use std::sync::Arc;

use axum::Router;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::HeaderValue;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use crate::accounts::new_secret;
use crate::host::App;

const PAGE: &str = include_str!("welcome.html");

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/welcome", get(welcome))
}

async fn welcome() -> Response {
    let nonce = new_secret();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    );
    let mut response = Html(PAGE.replace("NONCE", &nonce)).into_response();
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(&policy).map(|p| (CONTENT_SECURITY_POLICY, p)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
