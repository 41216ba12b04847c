//! The CA that signs the host's certificate, for clients that want to trust it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use kohakuriver_api::{CaCertificate, ErrorBody};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::host::App;
use crate::https::HttpsMode;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(ca))
}

/// Returns the CA of this host's certificate, where the host signs its own. Public: clients compare
/// its fingerprint with the one that the host printed at its start.
#[utoipa::path(get, path = "/api/auth/ca", tag = "cluster",
    responses((status = 200, body = CaCertificate), (status = 404, body = ErrorBody)))]
async fn ca(State(app): State<Arc<App>>) -> Result<Json<CaCertificate>, ApiError> {
    if app.config.https != HttpsMode::OwnCa {
        let detail = "this host does not sign its own certificate";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_own_ca", detail));
    }
    Ok(Json(CaCertificate {
        ca_pem: app.ca.certificate_pem().to_owned(),
        fingerprint: app.ca.fingerprint(),
    }))
}
