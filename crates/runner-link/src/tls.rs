//! All TLS settings of the link: version 1.3 only, one crypto provider, our own CA only.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};

use crate::pki::{Ca, HostCertificate, PkiError, RunnerIdentity, fingerprint};
use crate::protocol::{ALPN_CONTROL, ALPN_DATA, ALPN_ENROLL};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The host's side. A client certificate is optional for TLS, because a machine that joins has
/// none yet; the accept loop demands one for every other protocol.
pub fn host_config(ca: &Ca, certificate: HostCertificate) -> Result<Arc<ServerConfig>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).map_err(|_| PkiError::Parse)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|_| PkiError::Parse)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| PkiError::Parse)?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificate.chain, certificate.key)
        .map_err(|_| PkiError::Parse)?;
    config.alpn_protocols =
        [ALPN_CONTROL, ALPN_DATA, ALPN_ENROLL].iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A joined runner's side.
pub(crate) fn runner_config(
    identity: &RunnerIdentity,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, PkiError> {
    let parse = |_| PkiError::Parse;
    let ca = CertificateDer::from_pem_slice(identity.ca_pem.as_bytes()).map_err(parse)?;
    let own = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).map_err(parse)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(parse)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|_| PkiError::Parse)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| PkiError::Parse)?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .map_err(|_| PkiError::Parse)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// A machine that joins: it knows the CA by the fingerprint in its token, nothing else.
pub(crate) fn enroll_config(ca_fingerprint: &str) -> Result<Arc<ClientConfig>, PkiError> {
    let verifier = PinnedCa { fingerprint: ca_fingerprint.to_owned(), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| PkiError::Parse)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLL.to_vec()];
    Ok(Arc::new(config))
}

/// Accepts exactly the hosts whose chain ends in the CA with the known fingerprint, and checks
/// name, validity and signatures like any other verifier.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.fingerprint)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Returns the hint for a failed handshake.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(
            CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. },
        )) => {
            "the host's certificate is not valid at the time of this machine's clock; set the clocks of both (timedatectl set-ntp true), and restart the host if its clock was wrong at its start"
        }
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the host's certificate is not from the CA in this node's join token; check the address or create a new join token"
        }
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "this machine's certificate has expired by the host's clock; set the clocks of both (timedatectl set-ntp true), or join again with a new token (kohakuriver runner --rejoin --join TOKEN)"
        }
        Some(Error::AlertReceived(_)) => {
            "the host refused this machine's certificate; join again with a new token"
        }
        _ => "check that the address is the host's link port (8001)",
    }
}

/// A dead peer is noticed by the kernel too, and small messages are not held back.
pub fn keep_alive(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(20))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    // Both are hints: without them the application's own deadlines still hold.
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_nodelay(true);
}
