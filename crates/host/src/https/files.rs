//! A certificate and its key in two files that another program renews.
//!
//! The files are written one after the other. So a change is taken up once both have been unchanged
//! for a moment, and a certificate that does not match its key is refused: the old pair stays.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::TlsError;

/// A chain has a few kilobytes.
const MAX_BYTES: u64 = 1024 * 1024;
const DAY_MS: i64 = 24 * 3600 * 1000;
/// Renewal usually happens a month ahead; with less left than this, it has probably failed.
const WARN_BEFORE_DAYS: i64 = 14;

/// The metadata that distinguishes versions of a file.
type Stamp = Option<(u64, i64, i64, u64)>;

/// The two files, with their metadata at the last check.
#[derive(Debug)]
pub struct Files {
    cert: PathBuf,
    key: PathBuf,
    /// The version that was taken up or refused.
    done: [Stamp; 2],
    /// The version at the last check.
    seen: [Stamp; 2],
}

impl Files {
    pub fn new(cert: PathBuf, key: PathBuf) -> Result<(Self, CertifiedKey), TlsError> {
        let stamps = [stamp(&cert), stamp(&key)];
        let first = load(&cert, &key)?;
        Ok((Self { cert, key, done: stamps, seen: stamps }, first))
    }

    /// Returns the new pair, if there is one.
    pub fn check(&mut self, now_ms: i64) -> Option<CertifiedKey> {
        let stamps = [stamp(&self.cert), stamp(&self.key)];
        let still = std::mem::replace(&mut self.seen, stamps) == stamps;
        if !still || stamps == self.done {
            return None;
        }
        self.done = stamps;
        match load(&self.cert, &self.key) {
            Ok(fresh) => {
                tracing::info!(cert = %self.cert.display(), "HTTPS presents the new certificate");
                self.warn_of_age(&fresh, now_ms);
                Some(fresh)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    %error, cause = cause.unwrap_or_default(),
                    "the new certificate is invalid; HTTPS presents the old one"
                );
                None
            }
        }
    }

    /// Logs a warning if the certificate is close to its end.
    pub fn warn_of_age(&self, certified: &CertifiedKey, now_ms: i64) {
        let Some(parsed) = parse(certified) else { return };
        let end_ms = parsed.validity().not_after.timestamp().saturating_mul(1000);
        let days = (end_ms - now_ms).div_euclid(DAY_MS);
        if days < WARN_BEFORE_DAYS {
            let cert = self.cert.display();
            tracing::warn!(%cert, days, "the HTTPS certificate expires soon");
        }
    }
}

/// Returns the certificate's DNS names; a wildcard tells nothing about this host.
pub fn dns_names(certified: &CertifiedKey) -> Vec<String> {
    let Some(parsed) = parse(certified) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| {
        let GeneralName::DNSName(name) = name else { return None };
        (!name.contains('*')).then(|| (*name).to_owned())
    };
    names.value.general_names.iter().filter_map(name).collect()
}

fn parse(certified: &CertifiedKey) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(certified.cert.first()?).ok().map(|(_, parsed)| parsed)
}

/// Reads a file's metadata. A link to another target is a new version too, as certbot's are after a
/// renewal.
fn stamp(path: &Path) -> Stamp {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
}

fn load(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate { path: cert.to_owned() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: cert.to_owned() });
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| TlsError::NoKey { path: key.to_owned() })?;
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
        .map_err(|source| TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path);
    match file.and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(TlsError::File { path: path.to_owned(), source }),
    }
}
