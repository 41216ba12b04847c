//! Trust in a host that is reached by https.
//!
//! A host's own CA is pinned: one file for each host, in the configuration directory, and then no
//! other CA is trusted for that host. Without a pin the system's roots apply. Both are read only
//! for https, so that other commands do not pay their cost.

mod verifier;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use crate::error::CommandError;
use crate::files;

pub use verifier::{RecordingVerifier, is_of_the_issuer};

const PINS: &str = "ca";

/// The trust in one host.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The path of the pinned CA, whether it exists or not. `None` without a home directory.
    pin: Option<PathBuf>,
}

impl Trust {
    /// Reads the trust for the host at `place`, a `host:port`.
    pub fn new(folder: Option<&Path>, place: &str) -> Self {
        let name = format!("{}.pem", place.to_ascii_lowercase());
        Self { pin: folder.map(|folder| folder.join(PINS).join(name)) }
    }

    /// Trusts this CA from now on, and no other.
    pub fn pin(&self, ca_pem: &str) -> Result<(), CommandError> {
        let ca =
            certificate(ca_pem).ok_or_else(|| CommandError::request("this is no certificate"))?;
        RootCertStore::empty().add(ca).map_err(|error| {
            CommandError::request(format!("this is no CA's certificate: {error}"))
        })?;
        let Some(path) = &self.pin else {
            return Err(CommandError::usage("there is no home folder to keep the host's CA in")
                .hint("set HOME, or KOHAKURIVER_CONFIG to the configuration file's path"));
        };
        path.parent()
            .map_or(Ok(()), files::private_folder)
            .and_then(|()| files::replace(path, 0o600, ca_pem.as_bytes()))
            .map_err(|error| files::unwritable(path, &error))
    }

    /// Returns whether a CA is pinned.
    pub fn is_pinned(&self) -> bool {
        self.pin.as_ref().is_some_and(|path| path.exists())
    }

    /// Returns a TLS configuration for the host, and a verifier that records its certificates.
    pub fn client(&self) -> Result<(Arc<ClientConfig>, Arc<RecordingVerifier>), CommandError> {
        let pinned = self.pinned()?;
        let is_pinned = pinned.is_some();
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(pinned.unwrap_or_else(systems_roots)),
            provider(),
        )
        .build();
        // A machine without roots believes nobody, which is no reason not to look.
        let witness = Arc::new(RecordingVerifier::new(verifier.ok(), is_pinned));
        Ok((config(&witness)?, witness))
    }

    /// Returns the fingerprint of the trusted CA, for other programs that shall trust it.
    pub fn pinned_fingerprint(&self) -> Option<String> {
        let pem = std::fs::read_to_string(self.pin.as_ref()?).ok()?;
        certificate(&pem).map(|ca| fingerprint(&ca))
    }

    fn pinned(&self) -> Result<Option<RootCertStore>, CommandError> {
        let Some(path) = &self.pin else { return Ok(None) };
        let shown = path.display();
        let pem = match std::fs::read_to_string(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(files::unreadable(path, &error)),
        };
        let mut roots = RootCertStore::empty();
        match certificate(&pem).map(|ca| roots.add(ca)) {
            Some(Ok(())) => Ok(Some(roots)),
            Some(Err(_)) | None => Err(CommandError::usage(format!("{shown} is damaged"))
                .hint(format!("rm {shown}, and log in to that host again"))),
        }
    }
}

/// Returns a TLS configuration that records the host's certificates without trusting any.
pub fn looking() -> Result<(Arc<ClientConfig>, Arc<RecordingVerifier>), CommandError> {
    let witness = Arc::new(RecordingVerifier::of_anybody());
    Ok((config(&witness)?, witness))
}

/// Returns the fingerprint of a CA if it signed this chain.
pub fn fingerprint_if_signed(
    chain: &[CertificateDer<'static>],
    ca_pem: &str,
    name: &ServerName<'_>,
) -> Result<String, rustls::Error> {
    let unknown = || rustls::Error::from(rustls::CertificateError::UnknownIssuer);
    let ca = certificate(ca_pem).ok_or_else(unknown)?;
    let fingerprint = fingerprint(&ca);
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|_| unknown())?;
    let (own, others) = chain.split_first().ok_or_else(unknown)?;
    verifier.verify_server_cert(own, others, name, &[], UnixTime::now())?;
    Ok(fingerprint)
}

/// Formats a fingerprint as hosts print it and join tokens contain it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(&Sha256::digest(certificate))
}

fn certificate(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn config(witness: &Arc<RecordingVerifier>) -> Result<Arc<ClientConfig>, CommandError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| CommandError::request(format!("cannot use TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Skips a certificate that cannot be parsed, as other programs do.
fn systems_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "a root certificate of the system was left out");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}
