//! The HTTP API. Handlers extract, authorize, call and map; nothing is decided here.

mod approval;
mod audit;
mod auth;
mod ca;
mod document;
mod error;
mod forward;
mod fs;
mod guard;
mod health;
mod held;
mod lifecycle;
mod node;
mod oidc;
mod page;
mod quota;
mod serve;
mod sharing;
mod snapshots;
mod socket;
mod ssh_cert;
mod stream;
mod terminal;
mod tokens;
mod users;
mod vm;
mod vps;
mod welcome;
mod write_deadline;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::host::App;

use error::ApiError;

pub use held::Requests;
pub use serve::serve;

/// The largest body of a valid request, in bytes: a create with many keys.
const MAX_BODY: usize = 1024 * 1024;

#[derive(OpenApi)]
#[openapi(info(
    title = "KohakuRiver",
    description = "VPSes with SSH access, on a cluster of Linux hosts. \
                   Errors are `{detail, code, hint?}`.",
    license(name = "MIT OR Apache-2.0")
))]
struct Document;

/// Returns all routes, with the OpenAPI document generated from them at `/openapi.json`.
fn router(app: Arc<App>) -> Router {
    let (router, mut document): (Router<Arc<App>>, _) =
        OpenApiRouter::with_openapi(Document::openapi())
            .merge(health::routes())
            .merge(auth::routes())
            .merge(oidc::routes())
            .merge(tokens::routes())
            .merge(users::routes())
            .merge(quota::routes())
            .merge(approval::routes())
            .merge(sharing::routes())
            .merge(audit::routes())
            .merge(ca::routes())
            .merge(vps::routes())
            .merge(lifecycle::routes())
            .merge(snapshots::routes())
            .merge(node::routes())
            .merge(vm::routes())
            .merge(stream::routes())
            .merge(ssh_cert::routes())
            .merge(fs::routes())
            .split_for_parts();
    document::complete(&mut document);
    let document = Arc::new(document);
    router
        .merge(terminal::routes())
        .merge(forward::routes())
        .merge(welcome::routes())
        .merge(fs::sockets())
        .route("/openapi.json", get(async move || Json(document.as_ref().clone())))
        .fallback(redirect_trailing_slash)
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(error::to_error_body))
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Redirects paths with a trailing slash, as existing clients write them; answers 404 to others.
async fn redirect_trailing_slash(uri: http::Uri) -> Response {
    match uri.path().strip_suffix('/').filter(|path| path.starts_with("/api/")) {
        Some(path) => {
            let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            axum::response::Redirect::temporary(&format!("{path}{query}")).into_response()
        }
        None => ApiError::unknown_route().into_response(),
    }
}
