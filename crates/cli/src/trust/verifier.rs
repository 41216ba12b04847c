//! Verifies a host's certificate, and records it for the user's decision.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::{fingerprint, provider};
use crate::error::CommandError;

/// The longest recorded chain.
const MOST_CERTIFICATES: usize = 16;

#[derive(Debug)]
pub struct RecordingVerifier {
    judge: Judge,
    pinned: bool,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

#[derive(Debug)]
enum Judge {
    /// Verifies like every client. `None` trusts no certificate.
    Strict(Option<Arc<WebPkiServerVerifier>>),
    /// Accepts any certificate, which is judged afterwards.
    Deferred,
}

impl RecordingVerifier {
    pub(super) fn new(verifier: Option<Arc<WebPkiServerVerifier>>, pinned: bool) -> Self {
        Self::with(Judge::Strict(verifier), pinned)
    }

    pub(super) fn of_anybody() -> Self {
        Self::with(Judge::Deferred, false)
    }

    fn with(judge: Judge, pinned: bool) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { judge, pinned, algorithms, seen: Mutex::default() }
    }

    /// The chain of the last handshake, the host's own certificate first.
    pub fn seen(&self) -> Vec<CertificateDer<'static>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Describes the TLS failure with the host at `url`.
    pub fn explain(&self, error: &Error, url: &str) -> CommandError {
        if matches!(error, Error::InvalidMessage(_)) {
            return CommandError::distrusted(format!("the server at {url} does not use TLS"))
                .hint(format!("if it is the host: --host {}", url.replacen("https", "http", 1)));
        }
        let Error::InvalidCertificate(reason) = error else {
            return CommandError::distrusted(format!("{url} cannot be reached by TLS: {error}"));
        };
        if is_of_the_issuer(error) {
            return self.unknown(url);
        }
        let CertificateError::NotValidForNameContext { presented, .. } = reason else {
            let text = format!("the certificate of {url} is not valid at this time");
            return CommandError::distrusted(text)
                .hint("see whether this machine's clock is right: timedatectl");
        };
        let names = presented.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ");
        CommandError::distrusted(format!(
            "the certificate of {url} is not for that name but for: {names}"
        ))
        .hint("use one of these, or have the host started with --name and this one")
    }

    fn unknown(&self, url: &str) -> CommandError {
        let seen = self.seen();
        let shown = seen.last().map(fingerprint).unwrap_or_default();
        if self.pinned {
            return CommandError::distrusted(format!(
                "{url} is not the host that this machine knows by that name: its CA now has the \
                 fingerprint {shown}"
            ))
            .hint(format!(
                "the connection may be intercepted; if the host's operator confirms that it was \
                 set up anew and has this fingerprint: kohakuriver auth login {url}"
            ));
        }
        CommandError::distrusted(format!(
            "{url} is signed by a CA that this machine does not trust; its fingerprint is {shown}"
        ))
        .hint(format!(
            "if the host showed that fingerprint at its start: kohakuriver auth login {url}"
        ))
    }
}

/// Returns whether the error concerns the issuer of a certificate, and not its name or time.
pub fn is_of_the_issuer(error: &Error) -> bool {
    let Error::InvalidCertificate(reason) = error else { return false };
    !matches!(
        reason,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::NotValidForNameContext { .. }
    )
}

/// Formats `DnsName("river.lab")` and `IpAddress(10.0.0.5)` as users write them.
fn plain(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_matches(|c| matches!(c, '"' | ')'))
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = std::iter::once(end_entity)
            .chain(intermediates)
            .take(MOST_CERTIFICATES)
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        match &self.judge {
            Judge::Strict(Some(verifier)) => verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            Judge::Strict(None) => Err(CertificateError::UnknownIssuer.into()),
            Judge::Deferred => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
