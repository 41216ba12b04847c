//! The one-time join token: where the host is, who it is, and the secret that admits one node.
//!
//! `krj1.` and base64url of a small JSON object. The fingerprint of the host's CA is inside, so
//! the machine that joins knows whom it talks to before it has any certificate.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::client::HostAddress;

const PREFIX: &str = "krj1.";
/// Real ones have about 250 characters.
const MAX_CHARS: usize = 2048;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    #[serde(rename = "a")]
    pub address: HostAddress,
    /// SHA-256 of the CA certificate, hex.
    #[serde(rename = "f")]
    pub ca_fingerprint: String,
    #[serde(rename = "s")]
    pub secret: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this is not a join token: copy the whole line that 'kohakuriver node token create' printed"
)]
pub struct ParseTokenError;

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&json))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("address", &self.address).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).filter(|_| text.len() <= MAX_CHARS);
        let json = body.and_then(|body| BASE64URL_NOPAD.decode(body.as_bytes()).ok());
        json.and_then(|json| serde_json::from_slice(&json).ok()).ok_or(ParseTokenError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_answered_without_a_panic(text in "(krj1\\.)?[A-Za-z0-9_-]{0,80}") {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn a_token_reads_back_and_its_debug_hides_the_secret() {
        let token = JoinToken {
            address: "host.lab:8001".parse().unwrap(),
            ca_fingerprint: "ab".into(),
            secret: "hunter2".into(),
        };
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
