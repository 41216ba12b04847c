//! TLS for clients: browsers and command lines. Runners have their own (`kohakuriver-runner-link`).
//!
//! The certificate is either the host's own, signed by the CA that runners trust too, or read from
//! two files that another program renews. It can be replaced at any time; open connections continue
//! with the one of their handshake.

mod files;
mod own;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kohakuriver_runner_link::pki::{Ca, PkiError};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::HostConfig;
use crate::host::App;
use files::Files;
use own::Own;

/// The interval of checking the files, or whether our own certificate needs a successor.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The protection of client connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HttpsMode {
    /// Plain HTTP: on loopback, or behind a proxy.
    #[default]
    Off,
    /// The host's CA signs a certificate for this machine's names and addresses.
    OwnCa,
    /// A chain and its key, PEM.
    Files { cert: PathBuf, key: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no private key in PEM without a password", path.display())]
    NoKey { path: PathBuf },
    #[error("{} and {} do not belong together", cert.display(), key.display())]
    Mismatch { cert: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("cannot issue the HTTPS certificate")]
    Own(#[from] PkiError),
    #[error("cannot set up HTTPS")]
    Setup(#[source] rustls::Error),
}

/// The certificate that handshakes present.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl CurrentCertificate {
    fn replace(&self, new: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The source of the certificate.
#[derive(Debug)]
enum Source {
    Own(Own),
    Files(Files),
}

/// The TLS settings of the API's port, and the source that keeps their certificate current.
#[derive(Debug)]
pub struct HttpsServer {
    config: Arc<ServerConfig>,
    current: Arc<CurrentCertificate>,
    source: Source,
    names: Vec<String>,
}

impl HttpsServer {
    /// Loads the certificate. Returns `None` if the host serves plain HTTP.
    pub fn new(host: &HostConfig, ca: &Ca, now_ms: i64) -> Result<Option<Self>, TlsError> {
        let (source, first, names) = match &host.https {
            HttpsMode::Off => return Ok(None),
            HttpsMode::OwnCa => {
                let (own, first) = Own::new(host, ca, now_ms)?;
                (Source::Own(own), first, Vec::new())
            }
            HttpsMode::Files { cert, key } => {
                let (files, first) = Files::new(cert.clone(), key.clone())?;
                let names = files::dns_names(&first);
                files.warn_of_age(&first, now_ms);
                (Source::Files(files), first, names)
            }
        };
        let current = Arc::new(CurrentCertificate(RwLock::new(Arc::new(first))));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(TlsError::Setup)?
                .with_no_client_auth()
                .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Self { config: Arc::new(config), current, source, names }))
    }

    /// Returns the settings for the API's port.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Returns the DNS names in the certificate files, in addition to the configured ones.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Presents new certificates as they appear, until the shutdown.
    pub async fn keep_fresh(&mut self, app: Arc<App>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            let now_ms = app.clock.now_ms();
            let fresh = match &mut self.source {
                Source::Own(own) => own.check(&app.config, &app.ca, now_ms),
                Source::Files(files) => files.check(now_ms),
            };
            if let Some(fresh) = fresh {
                self.current.replace(fresh);
            }
        }
    }
}
