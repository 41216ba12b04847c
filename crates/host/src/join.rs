//! Join tokens, and the enrollment of nodes that present one.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use kohakuriver_model::{NodeId, NodeName, UserId};
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::enroll::{EnrollReply, EnrollRequest, MAX_CLOCK_SKEW_MS};
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::liveness::HANDSHAKE_LIMIT;
use kohakuriver_runner_link::token::JoinToken;
use kohakuriver_store::{RedeemError, StoreError};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::accounts::digest;
use crate::host::App;

/// The longest lifetime of a token.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

const NEW_TOKEN: &str = "on the host: kohakuriver node token create";

/// Creates a token, and returns it with its expiry. `readmits`: it may also rejoin the node of this
/// name, for a computer that has lost its identity. `by`: the admin that creates it.
pub async fn create_token(
    app: &App,
    ttl: Duration,
    address: Option<HostAddress>,
    readmits: Option<&NodeName>,
    by: Option<UserId>,
) -> Result<(JoinToken, i64), StoreError> {
    let secret = random_text();
    let now_ms = app.clock.now_ms();
    let ttl_ms = i64::try_from(ttl.min(MAX_TTL).as_millis()).unwrap_or(i64::MAX);
    app.store.create_join_token(&digest(&secret), now_ms, now_ms + ttl_ms, readmits, by).await?;
    let address = address.unwrap_or_else(|| app.config.link_address.clone());
    Ok((JoinToken { address, ca_fingerprint: app.ca.fingerprint(), secret }, now_ms + ttl_ms))
}

/// Serves one enrollment.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(app: &App, mut frames: FrameStream<S>) {
    let request = match timeout(HANDSHAKE_LIMIT, frames.receive::<EnrollRequest>()).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tracing::debug!(%error, "enrollment ended early"),
        Err(_) => return tracing::debug!("enrollment timed out"),
    };
    let name = request.node_name.clone();
    let reply = match admit(app, request).await {
        Ok(reply) => {
            tracing::info!(node.name = %name, "node joined");
            reply
        }
        Err(reply) => {
            if let EnrollReply::Refused { reason, .. } = &reply {
                tracing::warn!(node.name = %name, reason, "enrollment refused");
            }
            reply
        }
    };
    if let Err(error) = frames.send(&reply).await {
        tracing::debug!(%error, "enrollment ended before its response");
    }
}

async fn admit(app: &App, request: EnrollRequest) -> Result<EnrollReply, EnrollReply> {
    let refuse =
        |reason: String, hint: &str| EnrollReply::Refused { reason, hint: hint.to_owned() };
    let now_ms = app.clock.now_ms();
    // Checked before the token is redeemed, so that it still works once the clock is right.
    check_clock(request.now_ms, now_ms)?;
    let id =
        NodeId::new(format!("n-{}", random_text().to_ascii_lowercase().replace(['_', '-'], "0")));
    let sign = |id: &NodeId| {
        app.ca.sign_runner(&request.csr_pem, id, now_ms).map_err(|error| {
            refuse(format!("the certificate request is invalid: {error}"), NEW_TOKEN)
        })
    };
    // Also before: a request that cannot be signed must not use the token up.
    sign(&id)?;
    let hash = digest(&request.secret);
    let name = &request.node_name;
    match app.store.redeem_join_token(&hash, &id, name, now_ms).await {
        Ok(node_id) => {
            let ca_pem = app.ca.certificate_pem().to_owned();
            let certificate_pem = sign(&node_id)?;
            Ok(EnrollReply::Accepted { node_id, certificate_pem, ca_pem })
        }
        Err(error) => {
            let hint = match &error {
                RedeemError::NameTaken(name) => format!(
                    "join under another name with --name, or remove the old node: kohakuriver node remove {name}"
                ),
                RedeemError::Unknown
                | RedeemError::Expired
                | RedeemError::Void
                | RedeemError::Used { .. } => NEW_TOKEN.to_owned(),
                RedeemError::Store(_) => "see the host's log".to_owned(),
            };
            Err(refuse(error.to_string(), &hint))
        }
    }
}

/// Refuses a computer whose clock is far off: it would log, build and expire at wrong times.
fn check_clock(runner_ms: i64, host_ms: i64) -> Result<(), EnrollReply> {
    let skew_ms = runner_ms.saturating_sub(host_ms);
    if skew_ms.abs() <= MAX_CLOCK_SKEW_MS {
        return Ok(());
    }
    let side = if skew_ms > 0 { "ahead of" } else { "behind" };
    Err(EnrollReply::Refused {
        reason: format!("this machine's clock is {} s {side} the host's", skew_ms.abs() / 1000),
        hint: "set the clock (timedatectl set-ntp true), then join again with the same token"
            .to_owned(),
    })
}

/// Returns 128 random bits as text.
fn random_text() -> String {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    BASE64URL_NOPAD.encode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_skew_is_refused_with_its_amount() {
        assert!(check_clock(1_000_000, 1_200_000).is_ok());
        let Err(EnrollReply::Refused { reason, hint }) = check_clock(0, 3_600_000) else {
            panic!("an hour off was accepted");
        };
        assert!(reason.contains("3600 s behind"), "{reason}");
        assert!(hint.contains("same token"));
    }
}
