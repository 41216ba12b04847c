//! The CA for users' SSH certificates: a logged-in account needs no key of its own.
//!
//! A certificate names one instance (its principal, `vps-<id>`) and its holder (its key id). It is
//! valid for five minutes from now on, long enough to connect; sessions that are open by then are
//! ended by [`crate::sessions::registry`], not by the certificate. It is also valid for the five
//! minutes before now: a node's clock may be that far behind, and as far ahead.

use std::path::Path;

use kohakuriver_model::{InstanceId, TrustedCa, UserId};
use russh::keys::ssh_key::Certificate;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey};

use crate::ssh_keys::{self, KeyError};

const FILE: &str = "ssh_user_ca_ed25519_key";
/// The validity of a certificate, and the tolerated clock error, in seconds.
pub const LIFE: i64 = 5 * 60;
/// The rights of an ordinary key. Our SSH servers have no X11.
const EXTENSIONS: [&str; 4] =
    ["permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"];

/// The CA's key. Signs certificates and verifies its own signatures.
pub struct SshCa {
    key: PrivateKey,
    /// The public key, for instances.
    line: String,
}

impl std::fmt::Debug for SshCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshCa").field("line", &self.line).finish_non_exhaustive()
    }
}

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// `None` if authentication is off.
    pub id: Option<UserId>,
    pub name: &'a str,
}

/// A fresh certificate.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate as a line in OpenSSH's file format.
    pub line: String,
    pub principal: String,
    pub expires_ms: i64,
    pub serial: u64,
}

/// The claims of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedHolder {
    pub user: UserId,
    pub instance: InstanceId,
}

/// The reasons for which a key is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("not an OpenSSH public key")]
    NoKey,
    #[error("keys of type {0} are not supported: use Ed25519, ECDSA, RSA or a security key")]
    Kind(String),
    #[error("cannot sign the certificate")]
    Broken(#[from] russh::keys::ssh_key::Error),
}

impl SshCa {
    pub fn load_or_create(data_dir: &Path) -> Result<Self, KeyError> {
        let path = data_dir.join(FILE);
        let key = ssh_keys::load_or_create(&path)?;
        let line = PublicKey::from(key.public_key().key_data().clone())
            .to_openssh()
            .map_err(|error| KeyError::Key { path, source: error.into() })?;
        Ok(Self { key, line })
    }

    /// Returns the key and principal that an instance trusts.
    pub fn trusted_by(&self, instance: InstanceId) -> TrustedCa {
        let principal = TrustedCa::principal_of(instance);
        TrustedCa { key: self.line.trim_end().to_owned(), principal }
    }

    /// Signs the holder's public key. The caller has checked that the holder may enter the
    /// instance.
    pub fn sign(
        &self,
        public_key: &str,
        instance: InstanceId,
        holder: &Holder<'_>,
        now_ms: i64,
    ) -> Result<Signed, SignError> {
        let subject = PublicKey::from_openssh(public_key.trim()).map_err(|_| SignError::NoKey)?;
        let algorithm = subject.algorithm();
        if !is_signed(&algorithm) {
            return Err(SignError::Kind(algorithm.to_string()));
        }
        let principal = TrustedCa::principal_of(instance);
        let now = now_ms.div_euclid(1000);
        let at = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
        let serial = rand::random::<u64>();
        let mut builder = Builder::new_with_random_nonce(
            &mut rand::rng(),
            subject.key_data().clone(),
            at(now - LIFE),
            at(now + LIFE),
        )?;
        builder
            .serial(serial)?
            .cert_type(CertType::User)?
            .key_id(key_id(holder))?
            .valid_principal(principal.clone())?
            .comment("kohakuriver")?;
        for extension in EXTENSIONS {
            builder.extension(extension, "")?;
        }
        let line = builder.sign(&self.key)?.to_openssh()?;
        Ok(Signed { line, principal, expires_ms: (now + LIFE) * 1000, serial })
    }

    /// Returns the account and instance of a certificate, if this CA signed it for an account and
    /// it is valid now.
    pub fn verify(&self, certificate: &Certificate, now_ms: i64) -> Option<VerifiedHolder> {
        let ca = self.key.public_key();
        let seconds = u64::try_from(now_ms.div_euclid(1000)).ok()?;
        let ours = certificate.signature_key() == ca.key_data()
            && certificate.cert_type().is_user()
            && certificate.critical_options().iter().next().is_none()
            && certificate.validate_at(seconds, [&ca.fingerprint(HashAlg::Sha256)]).is_ok();
        let [principal] = certificate.valid_principals() else { return None };
        if !ours {
            return None;
        }
        let instance = TrustedCa::instance(principal)?;
        let user = certificate.key_id().strip_prefix("user ")?.split(' ').next()?;
        Some(VerifiedHolder { user: UserId(user.parse().ok()?), instance })
    }
}

fn is_signed(algorithm: &Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::Rsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256
    )
}

/// Formats the key id, for logs and the gateway. An unproven name is never taken for an account.
fn key_id(holder: &Holder<'_>) -> String {
    match holder.id {
        Some(id) => format!("user {} {}", id.0, holder.name),
        None => format!("everybody {}", holder.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_790_000_000_500;
    const ID: InstanceId = InstanceId::from_u64(7_398_213_345_412_345_856);

    fn ca() -> (SshCa, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (SshCa::load_or_create(dir.path()).unwrap(), dir)
    }

    fn subject() -> String {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        key.public_key().to_openssh().unwrap()
    }

    fn sign(ca: &SshCa, id: Option<UserId>, name: &str) -> Certificate {
        let signed = ca.sign(&subject(), ID, &Holder { id, name }, NOW_MS).unwrap();
        assert_eq!(signed.line.lines().count(), 1);
        Certificate::from_openssh(&signed.line).unwrap()
    }

    #[test]
    fn certificate_names_holder_and_instance_for_minutes() {
        let (ca, _dir) = ca();
        let certificate = sign(&ca, Some(UserId(12)), "alice");
        assert_eq!(certificate.key_id(), "user 12 alice");
        assert_eq!(certificate.valid_principals(), [format!("vps-{ID}")]);
        assert_eq!(certificate.valid_before() - certificate.valid_after(), 600);
        assert_eq!(certificate.extensions().iter().count(), EXTENSIONS.len());
        let verify = VerifiedHolder { user: UserId(12), instance: ID };
        assert_eq!(ca.verify(&certificate, NOW_MS), Some(verify));
        for at_ms in [NOW_MS + LIFE * 1000, NOW_MS - LIFE * 1000 - 1000] {
            assert_eq!(ca.verify(&certificate, at_ms), None);
        }
        assert_ne!(sign(&ca, None, "x").serial(), sign(&ca, None, "x").serial());
    }

    #[test]
    fn foreign_signature_and_unproven_name_are_no_account() {
        let (ca, _dir) = ca();
        let (other, _other_dir) = self::ca();
        assert_eq!(ca.verify(&sign(&other, Some(UserId(1)), "a"), NOW_MS), None);
        assert_eq!(ca.verify(&sign(&ca, None, "user 1 a"), NOW_MS), None);
    }

    #[test]
    fn openssh_reads_what_is_signed() {
        let (ca, dir) = ca();
        let holder = Holder { id: Some(UserId(12)), name: "alice" };
        let signed = ca.sign(&subject(), ID, &holder, NOW_MS).unwrap();
        let path = dir.path().join("id-cert.pub");
        std::fs::write(&path, format!("{}\n", signed.line)).unwrap();
        let output =
            std::process::Command::new("ssh-keygen").arg("-Lf").arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in ["user certificate", "user 12 alice", "permit-pty", &signed.principal] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn text_without_a_public_key_is_not_signed() {
        let (ca, _dir) = ca();
        let holder = Holder { id: None, name: "x" };
        for bad in ["", "ssh-ed25519 AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----"] {
            assert!(matches!(ca.sign(bad, ID, &holder, NOW_MS), Err(SignError::NoKey)), "{bad}");
        }
    }

    #[test]
    fn trusted_ca_line_is_parsed_back() {
        let (ca, _dir) = ca();
        let trusted = ca.trusted_by(ID);
        assert_eq!(TrustedCa::parse(&trusted.line()), Some(trusted));
    }
}
