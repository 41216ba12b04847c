//! HTML pages of this host: self-contained, with headers that allow no other content.

use axum::response::{Html, IntoResponse, Response};
use http::HeaderValue;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

use crate::accounts::new_secret;

/// Builds a page whose `NONCE`s mark its own styles and scripts. `policy` adds to what it may do. A
/// form of a page without a referrer would come from the origin `null`, so a page with a form uses
/// `same-origin`.
pub fn page(html: &str, policy: &str, referrer: &'static str) -> Response {
    let nonce = new_secret();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; {policy}; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    let mut response = Html(html.replace("NONCE", &nonce)).into_response();
    let headers = response.headers_mut();
    headers.extend(HeaderValue::from_str(&policy).map(|p| (CONTENT_SECURITY_POLICY, p)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static(referrer));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
