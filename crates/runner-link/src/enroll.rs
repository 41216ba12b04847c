//! Joins a node to the host: one exchange over a connection that trusts the CA named in the token.

use std::path::Path;

use kohakuriver_model::{NodeId, NodeName};
use serde::{Deserialize, Serialize};

use crate::client::{HostAddress, LinkError, dial};
use crate::frame::{FrameError, FrameStream};
use crate::pki::{PkiError, RunnerIdentity, new_key};
use crate::tls;
use crate::token::JoinToken;

/// Beyond this the machine's times in logs, builds and certificates are wrong enough to fix
/// before it joins.
pub const MAX_CLOCK_SKEW_MS: i64 = 5 * 60 * 1000;

/// The request of the joining node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrollRequest {
    pub secret: String,
    pub node_name: NodeName,
    pub csr_pem: String,
    pub now_ms: i64,
}

/// The host's response.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum EnrollReply {
    Accepted { node_id: NodeId, certificate_pem: String, ca_pem: String },
    Refused { reason: String, hint: String },
}

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the connection to the host failed while this machine was joining")]
    Frame(#[from] FrameError),
    #[error("{reason}")]
    Refused { reason: String, hint: String },
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Joins with a token and keeps the new identity in `dir`.
pub async fn enroll(
    token: &JoinToken,
    address: Option<&HostAddress>,
    node_name: &NodeName,
    dir: &Path,
    now_ms: i64,
) -> Result<RunnerIdentity, EnrollError> {
    let address = address.unwrap_or(&token.address).clone();
    let (key_pem, csr_pem) = new_key()?;
    let config = tls::enroll_config(&token.ca_fingerprint)?;
    let mut frames = FrameStream::small(dial(&address, config).await?);
    let request = EnrollRequest {
        secret: token.secret.clone(),
        node_name: node_name.clone(),
        csr_pem,
        now_ms,
    };
    frames.send(&request).await?;
    match frames.receive().await? {
        EnrollReply::Accepted { node_id, certificate_pem, ca_pem } => {
            let identity = RunnerIdentity {
                node_id,
                node_name: node_name.clone(),
                host_address: address,
                key_pem,
                certificate_pem,
                ca_pem,
            };
            identity.save(dir)?;
            Ok(identity)
        }
        EnrollReply::Refused { reason, hint } => Err(EnrollError::Refused { reason, hint }),
    }
}
