//! The host's certificate authority and the identities it makes.
//!
//! One CA per cluster, made at the host's first start, 0600 on its disk. The host gets a fresh
//! key and certificate at every start; a runner keeps its key and renews its certificate.
//!
//! Clocks are wrong at times, above all at a first start. So nothing of the link's begins to be
//! valid at the moment it is made, but years before, and ends years after: a clock that is
//! corrected later locks out no node. A node's membership ends with its row in the database, not at
//! a date. A CA is not made at all before the time this program was written at.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use kohakuriver_model::{NodeId, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::client::HostAddress;

/// The name in the host's certificate, independent of its address: trust comes from the CA.
pub(crate) static SERVER_NAME: LazyLock<ServerName<'static>> =
    LazyLock::new(|| ServerName::try_from(SERVER_DNS_NAME).expect("a constant DNS name"));
const SERVER_DNS_NAME: &str = "kohakuriver-host.internal";

const DAY_MS: i64 = 24 * 3600 * 1000;
const CA_DAYS: i64 = 20 * 365;
const HOST_DAYS: i64 = 5 * 365;
const RUNNER_DAYS: i64 = 5 * 365;
const PEOPLE_DAYS: i64 = 90;
/// People's certificate is followed by another when less than this is left.
const RENEW_BEFORE_DAYS: i64 = 30;
/// A runner asks for a new certificate when less than this is left.
const RUNNER_RENEW_BEFORE_DAYS: i64 = 4 * 365;
/// Of certificates from versions that gave 90 days.
const SHORT_RENEW_BEFORE_DAYS: i64 = 30;
/// When what the link shows begins to be valid: 2020-01-01.
const VALID_FROM_MS: i64 = 1_577_836_800_000;
/// When this was written, 2026-09-01: a clock before it is wrong.
const WRITTEN_MS: i64 = 1_788_220_800_000;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot use {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("cannot create a certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot parse a certificate or key")]
    Parse,
    #[error(
        "cannot create a certificate authority at {0}, before this program was built: set this machine's clock"
    )]
    Clock(String),
    #[error(
        "the CA certificate is valid from {from} until {until}, and this machine's clock says {now}"
    )]
    NotValidNow { from: String, until: String, now: String },
}

/// The cluster's certificate authority.
pub struct Ca {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// A key and certificate of the host, as rustls takes them.
#[derive(Debug)]
pub struct HostCertificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Ca {
    /// Loads the CA of `dir`, or makes it there.
    pub fn load_or_create(dir: &Path, now_ms: i64) -> Result<Self, PkiError> {
        let path = dir.join("ca.pem");
        match fs::read_to_string(&path) {
            Ok(pem) => Self::from_pem(&pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound && now_ms < WRITTEN_MS => {
                let now = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default();
                Err(PkiError::Clock(now.to_string()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = Self::create(now_ms)?;
                write_private(&path, pem.as_bytes())?;
                Self::from_pem(&pem)
            }
            Err(source) => Err(PkiError::File { path, source }),
        }
    }

    /// Key and certificate in one text, so that one rename makes both durable.
    fn create(now_ms: i64) -> Result<String, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("KohakuRiver CA", VALID_FROM_MS, now_ms, CA_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
    }

    fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let start = pem.find("-----BEGIN CERTIFICATE").ok_or(PkiError::Parse)?;
        let certificate_pem = pem[start..].to_owned();
        let key = KeyPair::from_pem(&pem[..start])?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| PkiError::Parse)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, certificate_pem, issuer })
    }

    /// SHA-256 of the certificate, hex: what a join token carries.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Checks the CA certificate's own validity period. Runners ignore it (they pin the CA);
    /// browsers and other clients do not.
    ///
    /// # Errors
    /// [`PkiError::NotValidNow`] with both dates where `now_ms` (Unix time) is outside the period.
    pub fn check_validity(&self, now_ms: i64) -> Result<(), PkiError> {
        let (_, parsed) =
            X509Certificate::from_der(&self.certificate).map_err(|_| PkiError::Parse)?;
        let validity = parsed.validity();
        let from_ms = validity.not_before.timestamp().saturating_mul(1000);
        let until_ms = validity.not_after.timestamp().saturating_mul(1000);
        if (from_ms..until_ms).contains(&now_ms) {
            return Ok(());
        }
        let date = |ms: i64| {
            let (year, month, day) = civil(ms.div_euclid(DAY_MS));
            format!("{year}-{month:02}-{day:02}")
        };
        Err(PkiError::NotValidNow { from: date(from_ms), until: date(until_ms), now: date(now_ms) })
    }

    /// A fresh key and certificate for this start of the host.
    pub fn issue_host(&self, now_ms: i64) -> Result<HostCertificate, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("KohakuRiver host", VALID_FROM_MS, now_ms, HOST_DAYS)?;
        params.subject_alt_names =
            vec![rcgen::SanType::DnsName(SERVER_DNS_NAME.try_into().map_err(|_| PkiError::Parse)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.certify(&params, &key)
    }

    /// A fresh key and certificate for browsers and command lines, which reach the host under
    /// these names and addresses, and when it should be followed by another.
    pub fn issue_people(
        &self,
        names: &[String],
        now_ms: i64,
    ) -> Result<(HostCertificate, i64), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("KohakuRiver", now_ms - 7 * DAY_MS, now_ms, PEOPLE_DAYS)?;
        // A machine may be called what no certificate can say; its other names still work.
        params.subject_alt_names = names
            .iter()
            .filter_map(|name| match name.parse() {
                Ok(address) => Some(rcgen::SanType::IpAddress(address)),
                Err(_) => name.as_str().try_into().ok().map(rcgen::SanType::DnsName),
            })
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.certify(&params, &key)?;
        Ok((certificate, now_ms + (PEOPLE_DAYS - RENEW_BEFORE_DAYS) * DAY_MS))
    }

    fn certify(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> Result<HostCertificate, PkiError> {
        let certificate = params.signed_by(key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| PkiError::Parse)?;
        Ok(HostCertificate {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key,
        })
    }

    /// Signs a runner's request. Only the public key is taken from it; the name is ours to say.
    pub fn sign_runner(
        &self,
        csr_pem: &str,
        node: &NodeId,
        now_ms: i64,
    ) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        request.params = params(node.as_str(), VALID_FROM_MS, now_ms, RUNNER_DAYS)?;
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// Which node a verified client certificate speaks for.
pub fn node_of_certificate(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    Some(NodeId::new(name))
}

pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(&Sha256::digest(certificate))
}

fn params(
    common_name: &str,
    from_ms: i64,
    now_ms: i64,
    days: i64,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Day resolution is enough, and avoids a second date library in our own code.
    let date = |ms: i64| {
        let (year, month, day) = civil(ms.div_euclid(DAY_MS));
        rcgen::date_time_ymd(year, month, day)
    };
    params.not_before = date(from_ms);
    // A clock that is behind must not make what has ended when it is set.
    params.not_after = date(now_ms.max(WRITTEN_MS) + days * DAY_MS);
    Ok(params)
}

/// Days since 1970 as a UTC date.
fn civil(days: i64) -> (i32, u8, u8) {
    let date = jiff::civil::date(1970, 1, 1).saturating_add(jiff::Span::new().days(days));
    (i32::from(date.year()), date.month() as u8, date.day() as u8)
}

/// A runner's identity: its key, certificates and node. The file is 0600.
#[derive(Clone, Serialize, Deserialize)]
pub struct RunnerIdentity {
    pub node_id: NodeId,
    pub node_name: NodeName,
    pub host_address: HostAddress,
    pub key_pem: String,
    pub certificate_pem: String,
    pub ca_pem: String,
}

impl fmt::Debug for RunnerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerIdentity")
            .field("node_id", &self.node_id)
            .field("node_name", &self.node_name)
            .field("host_address", &self.host_address)
            .finish_non_exhaustive()
    }
}

const IDENTITY_FILE: &str = "identity.json";

impl RunnerIdentity {
    /// The identity kept in `dir`, `None` where this machine has not joined.
    pub fn load(dir: &Path) -> Result<Option<Self>, PkiError> {
        let path = dir.join(IDENTITY_FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| PkiError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::File { path, source }),
        }
    }

    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let path = dir.join(IDENTITY_FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| PkiError::Damaged { path: path.clone(), source })?;
        write_private(&path, &text)
    }

    /// Whether so little validity is left that a new certificate should be asked for.
    pub fn needs_renewal(&self, now_ms: i64) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()) else {
            return true;
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else {
            return true;
        };
        let end_ms = parsed.validity().not_after.timestamp().saturating_mul(1000);
        let from_ms = parsed.validity().not_before.timestamp().saturating_mul(1000);
        let is_short = end_ms - from_ms < 365 * DAY_MS;
        let days = if is_short { SHORT_RENEW_BEFORE_DAYS } else { RUNNER_RENEW_BEFORE_DAYS };
        end_ms - now_ms < days * DAY_MS
    }

    /// A signing request for the key this runner already has.
    pub fn renewal_csr(&self) -> Result<String, PkiError> {
        signing_request(&KeyPair::from_pem(&self.key_pem)?)
    }

    #[must_use]
    pub fn with_certificate(&self, certificate_pem: String) -> Self {
        Self { certificate_pem, ..self.clone() }
    }
}

/// A new key (PEM) and a signing request for it.
pub(crate) fn new_key() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let request = signing_request(&key)?;
    Ok((key.serialize_pem(), request))
}

fn signing_request(key: &KeyPair) -> Result<String, PkiError> {
    Ok(CertificateParams::new(Vec::new())?.serialize_request(key)?.pem()?)
}

/// Writes a secret file with mode 0600.
fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    kohakuriver_durable::write(path, content, 0o600)
        .map_err(|source| PkiError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000_000;

    #[test]
    fn the_ca_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::load_or_create(dir.path(), NOW).unwrap().fingerprint();
        assert_eq!(Ca::load_or_create(dir.path(), NOW + DAY_MS).unwrap().fingerprint(), first);
    }

    #[test]
    fn no_ca_is_made_while_the_clock_is_obviously_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let error = Ca::load_or_create(dir.path(), 0).unwrap_err();
        assert!(error.to_string().contains("1970-01-01"), "{error}");
        assert!(!dir.path().join("ca.pem").exists());
        // One that is there is used: the machine's clock may start in 1970 at each boot.
        Ca::load_or_create(dir.path(), NOW).unwrap();
        assert!(Ca::load_or_create(dir.path(), 0).is_ok());
    }

    #[test]
    fn ca_outside_its_validity_period_is_reported_with_its_dates() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path(), NOW).unwrap();
        ca.check_validity(NOW).unwrap();
        let until_ms = NOW + CA_DAYS * DAY_MS;
        ca.check_validity(until_ms - DAY_MS).unwrap();
        let error = ca.check_validity(until_ms + DAY_MS).unwrap_err().to_string();
        assert!(error.contains("2020-01-01") && error.contains("2046-"), "{error}");
        assert!(ca.check_validity(VALID_FROM_MS - 1).is_err());
    }

    #[test]
    fn certificates_outlast_a_clock_that_is_corrected() {
        for made_at in [NOW - 20 * 365 * DAY_MS, NOW, NOW + 12 * 365 * DAY_MS] {
            let dir = tempfile::tempdir().unwrap();
            let ca = match Ca::load_or_create(dir.path(), made_at) {
                Err(_) => Ca::load_or_create(dir.path(), NOW).unwrap(),
                Ok(ca) => ca,
            };
            let (_, csr) = new_key().unwrap();
            let runner = ca.sign_runner(&csr, &NodeId::new("n-1"), made_at).unwrap();
            let runner = CertificateDer::from_pem_slice(runner.as_bytes()).unwrap();
            let host = ca.issue_host(made_at).unwrap().chain[0].clone();
            for certificate in [ca.certificate().clone(), runner, host] {
                let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
                let valid = parsed.validity();
                assert!(valid.not_before.timestamp() * 1000 < NOW, "{made_at}");
                assert!(valid.not_after.timestamp() * 1000 > NOW + 365 * DAY_MS, "{made_at}");
            }
        }
    }

    #[test]
    fn the_host_decides_whom_a_certificate_names() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path(), NOW).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish =
            CertificateParams::new(vec!["kohakuriver-host.internal".to_owned()]).unwrap();
        wish.distinguished_name.push(DnType::CommonName, "n-somebody-else");
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let pem = ca.sign_runner(&csr, &NodeId::new("n-1"), NOW).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(node_of_certificate(&der), Some(NodeId::new("n-1")));
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert!(parsed.subject_alternative_name().unwrap().is_none());
    }

    #[test]
    fn https_certificate_has_names_and_addresses_and_skips_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path(), NOW).unwrap();
        let names = ["river", "10.0.0.5", "::1", "fl\u{fc}sse"].map(str::to_owned);
        let (certificate, renew_at) = ca.issue_people(&names, NOW).unwrap();
        assert_eq!(renew_at, NOW + 60 * DAY_MS);
        let (_, parsed) = X509Certificate::from_der(&certificate.chain[0]).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 3);
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_certificate_is_renewed_after_a_year_and_lasts_for_five() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(dir.path(), NOW).unwrap();
        let (key_pem, csr) = new_key().unwrap();
        let identity = RunnerIdentity {
            node_id: NodeId::new("n-1"),
            node_name: "n1".parse().unwrap(),
            host_address: "h:1".parse().unwrap(),
            certificate_pem: ca.sign_runner(&csr, &NodeId::new("n-1"), NOW).unwrap(),
            key_pem,
            ca_pem: ca.certificate_pem().to_owned(),
        };
        assert!(!identity.needs_renewal(NOW + 360 * DAY_MS));
        assert!(identity.needs_renewal(NOW + 370 * DAY_MS));
        identity.save(dir.path()).unwrap();
        assert_eq!(RunnerIdentity::load(dir.path()).unwrap().unwrap().node_id, identity.node_id);
    }
}
