//! The page behind the links of the first admin, invitations and password resets. The link's token
//! follows its `#`, which no browser sends and no log has.

use std::sync::Arc;

use axum::Router;
use axum::response::Response;
use axum::routing::get;

use super::page::page;
use crate::host::App;

const PAGE: &str = include_str!("welcome.html");

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/welcome", get(welcome))
}

async fn welcome() -> Response {
    page(PAGE, "connect-src 'self'; form-action 'none'", "no-referrer")
}
