//! SSH certificates: give an account with access to a VPS a login with any fresh key.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use http::StatusCode;
use kohakuriver_api::{AskSshCertificate, ErrorBody, SshCertificate};
use kohakuriver_runner_link::protocol::StreamTarget;
use kohakuriver_store::InstanceRow;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::vps::authorize_named;
use crate::access::{Caller, Permission};
use crate::clock::iso;
use crate::host::App;
use crate::sessions::open::require_open;
use crate::ssh_ca::{Holder, LIFE, SignError, Signed};
use crate::{authorized_keys_sync, instances};

/// A key of 16384 bits has less than a third of this.
const LONGEST_KEY: usize = 16 * 1024;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(sign_ssh_key))
}

/// Signs a public key of the caller. The certificate is valid for five minutes, for this VPS's SSH
/// as any user of its image, and for the gateway on the way there.
#[utoipa::path(post, path = "/api/vps/{task}/ssh-cert", tag = "vps", params(("task" = String, Path)),
    request_body = AskSshCertificate,
    responses((status = 200, body = SshCertificate), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn sign_ssh_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<AskSshCertificate>, JsonRejection>,
) -> Result<Json<SshCertificate>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::Enter).await?;
    let Json(AskSshCertificate { public_key }) = body?;
    let row = instances::get(&app, &access).await?;
    require_open(&app, &row, &StreamTarget::Ssh)?;
    if public_key.len() > LONGEST_KEY {
        return Err(SignError::NoKey.into());
    }
    let name = caller.name();
    let holder = Holder { id: caller.user_id(), name: &name };
    let now_ms = app.clock.now_ms();
    // Validated first, so that an invalid key changes nothing.
    let Signed { line, principal, expires_ms, serial } =
        app.ssh_ca.sign(&public_key, access.task_id(), &holder, now_ms)?;
    let notified = authorized_keys_sync::trust(&app, &row).await?;
    tracing::info!(task.id = %row.id, user.name = name, serial, "SSH certificate signed");
    let warning = if notified { wrong_clock(&app, &row).await? } else { Some(unnotified(&row)) };
    let expires_at = iso(expires_ms);
    Ok(Json(SshCertificate { certificate: line, expires_at, principal, warning }))
}

fn unnotified(row: &InstanceRow) -> String {
    format!("node '{}' has not yet received this VPS's certificate authority", row.node_name)
}

/// Warns if our certificates are not valid by the node's clock.
async fn wrong_clock(app: &App, row: &InstanceRow) -> Result<Option<String>, ApiError> {
    let nodes = app.store.list_nodes().await?;
    let skew_ms = nodes.iter().find(|node| node.id == row.node_id).map_or(0, |n| n.clock_skew_ms);
    // The last minute allows for the connection.
    if skew_ms.abs() < (LIFE - 60) * 1000 {
        return Ok(None);
    }
    let direction = if skew_ms > 0 { "ahead of" } else { "behind" };
    let minutes = skew_ms.abs() / 60_000;
    Ok(Some(format!(
        "the clock of node '{}' is {minutes} minutes {direction} the host's: it takes this \
         certificate for one of another time",
        row.node_name
    )))
}

impl From<SignError> for ApiError {
    fn from(error: SignError) -> Self {
        let text = error.to_string();
        match error {
            SignError::NoKey | SignError::Kind(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_key", text)
            }
            SignError::Broken(error) => Self::internal("signing a certificate failed", &error),
        }
    }
}
