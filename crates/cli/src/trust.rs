//! Whose word this machine takes for who a host is, when it is reached by https.
//!
//! A host's own CA is pinned: one file for each host, in the configuration folder, and then no
//! other CA is believed for that host. Without a pin the system's roots are asked. Both are read
//! only when https is used: they cost what a command without it shall not pay.

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

/// What is believed of one host.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Where its CA is pinned, whether it is or not; None without a home.
    pin: Option<PathBuf>,
}

impl Trust {
    /// For the host at `place`, a `host:port`.
    pub fn new(folder: Option<&Path>, place: &str) -> Self {
        let name = format!("{}.pem", place.to_ascii_lowercase());
        Self { pin: folder.map(|folder| folder.join(PINS).join(name)) }
    }

    /// Believes this CA from now on, and no other.
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

    /// Whether a CA is believed already.
    pub fn is_pinned(&self) -> bool {
        self.pin.as_ref().is_some_and(|path| path.exists())
    }

    /// How to speak TLS there, and a witness of what it shows.
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

    /// The fingerprint of the CA that is believed, for others who shall believe it.
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

/// How to find out what a host shows, believing nothing yet.
pub fn looking() -> Result<(Arc<ClientConfig>, Arc<RecordingVerifier>), CommandError> {
    let witness = Arc::new(RecordingVerifier::of_anybody());
    Ok((config(&witness)?, witness))
}

/// The fingerprint of a CA, if it is the one whose word this chain is.
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

/// As hosts print it, and join tokens carry it.
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
        .map_err(|error| CommandError::request(format!("cannot speak TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One that cannot be read is left out, as every program does with these.
fn systems_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "a root certificate of the system was left out");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}
