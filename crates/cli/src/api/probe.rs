//! Probes of the host itself, for `kohakuriver doctor`.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::DATE;
use jiff::Timestamp;
use kohakuriver_api::Health;
use rustls::pki_types::CertificateDer;

use super::{ANSWER_LIMIT, Api};
use crate::error::CommandError;

/// The properties of a connection and response.
#[derive(Debug)]
pub struct Probe {
    pub health: Health,
    /// The address that answered.
    pub address: SocketAddr,
    /// The host's clock minus this machine's, to about a second. `None` where a proxy omits the
    /// date.
    pub skew_seconds: Option<i64>,
    /// The certificate chain, the host's own first; empty without TLS.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Api {
    pub async fn probe(&self) -> Result<Probe, CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let before = Timestamp::now();
        let answer = way
            .client
            .get(format!("{}/api/health", way.base))
            .timeout(ANSWER_LIMIT)
            .send()
            .await
            .map_err(|error| self.unreachable(way, &error))?;
        let after = Timestamp::now();
        let status = answer.status();
        let date = answer.headers().get(DATE).and_then(|value| value.to_str().ok());
        let skew_seconds = date.and_then(|date| skew(date, before, after));
        let body = answer.bytes().await.map_err(|error| self.unreachable(way, &error))?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        let health = serde_json::from_slice(&body).map_err(|_| self.stranger(status))?;
        let certificates = way.tls.as_ref().map(|tls| tls.witness.seen()).unwrap_or_default();
        Ok(Probe { health, address: way.address, skew_seconds, certificates })
    }
}

/// Returns zero where the response's time lies between the request's start and end.
fn skew(date: &str, before: Timestamp, after: Timestamp) -> Option<i64> {
    let host = jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second();
    // The header has whole seconds.
    let (first, last) = (before.as_second(), after.as_second());
    Some(if host < first { host - first } else { (host - last).max(0) })
}

/// Returns whether the port accepts connections.
pub async fn takes_connections(address: SocketAddr, limit: Duration) -> bool {
    let connecting = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(limit, connecting).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_response_causes_no_clock_skew() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let date = "Thu, 01 Jan 2026 00:00:10 GMT";
        let skew = |before: &str, after: &str| skew(date, at(before), at(after));
        assert_eq!(skew("2026-01-01T00:00:10.2Z", "2026-01-01T00:00:10.3Z"), Some(0));
        assert_eq!(skew("2026-01-01T00:00:09.9Z", "2026-01-01T00:00:12Z"), Some(0));
        assert_eq!(skew("2026-01-01T00:01:10Z", "2026-01-01T00:01:10Z"), Some(-60));
        assert_eq!(skew("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"), Some(9));
        assert_eq!(
            super::skew("nonsense", at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")),
            None
        );
    }
}
