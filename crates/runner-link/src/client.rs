//! The runner's side of the connections.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frame::FrameStream;
use crate::liveness::HANDSHAKE_LIMIT;
use crate::pki::{PkiError, RunnerIdentity, SERVER_NAME};
use crate::protocol::{ALPN_CONTROL, ALPN_DATA};
use crate::tls;

pub type LinkStream = TlsStream<TcpStream>;

/// Where the host's link port is, `host:port` or `[v6]:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostAddress {
    pub host: String,
    pub port: u16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not an address: write host:port, for example 10.0.0.5:8001")]
pub struct ParseAddressError(String);

impl FromStr for HostAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseAddressError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(address) => address,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        if host.is_empty() || host.len() > 255 || host.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for HostAddress {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostAddress> for String {
    fn from(address: HostAddress) -> Self {
        address.to_string()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot reach the host at {address}")]
    Connect { address: HostAddress, source: io::Error },
    #[error("the host at {address} did not answer within {} s", HANDSHAKE_LIMIT.as_secs())]
    Slow { address: HostAddress },
    #[error("the TLS handshake with {address} failed: {advice}")]
    Handshake { address: HostAddress, advice: &'static str, source: io::Error },
    #[error("this machine's certificate cannot be used")]
    Identity(#[from] PkiError),
}

/// Opens the control connection; the caller says hello.
pub async fn connect_control(
    identity: &RunnerIdentity,
) -> Result<FrameStream<LinkStream>, LinkError> {
    let config = tls::runner_config(identity, ALPN_CONTROL)?;
    Ok(FrameStream::new(dial(&identity.host_address, config).await?))
}

/// Opens a data connection for the host's pool.
pub async fn connect_data(identity: &RunnerIdentity) -> Result<LinkStream, LinkError> {
    let config = tls::runner_config(identity, ALPN_DATA)?;
    dial(&identity.host_address, config).await
}

pub(crate) async fn dial(
    address: &HostAddress,
    config: Arc<rustls::ClientConfig>,
) -> Result<LinkStream, LinkError> {
    let attempt = async {
        let tcp = kohakuriver_net::connect(&address.host, address.port)
            .await
            .map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        tls::keep_alive(&tcp);
        TlsConnector::from(config).connect(SERVER_NAME.clone(), tcp).await.map_err(|source| {
            let advice = tls::advice(&source);
            LinkError::Handshake { address: address.clone(), advice, source }
        })
    };
    match tokio::time::timeout(HANDSHAKE_LIMIT + Duration::from_secs(1), attempt).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Slow { address: address.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for text in ["a:1", "10.0.0.5:8001", "[::1]:8001"] {
            assert_eq!(text.parse::<HostAddress>().unwrap().to_string(), text);
        }
        for bad in ["", "a", ":1", "a:0", "a:99999", "::1:1", "a b:1"] {
            assert!(bad.parse::<HostAddress>().is_err(), "{bad:?}");
        }
    }
}
