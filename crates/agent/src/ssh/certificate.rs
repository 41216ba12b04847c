//! Which certificates may log in: those that the host's CA has signed for this very instance.
//!
//! By the time one is judged here, the library has checked that its signature is right, that it is
//! valid now by this machine's clock, and that the client holds its key. It does not know whose
//! signature counts, and for what.

use std::time::{SystemTime, UNIX_EPOCH};

use kohakuriver_model::{People, TrustedCa, UserId};
use russh::keys::ssh_key::Certificate;
use russh::keys::{HashAlg, PublicKey};

/// The reason that a certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("nobody's certificates are accepted here")]
    NoCa,
    #[error("it was signed by somebody else")]
    OtherCa,
    #[error("it is for a machine, not for a person")]
    HostCertificate,
    #[error("it is for another VPS")]
    OtherInstance,
    #[error("it is not valid now, or its signature is wrong")]
    Invalid,
    /// Critical options are not interpreted, and one might forbid this very login.
    #[error("it has restrictions")]
    Restricted,
    #[error("whom it is for may not enter this VPS")]
    NotOne,
}

/// The one signer that these lines of the settings name.
pub(super) fn trusted_ca(lines: &[String]) -> Option<TrustedCa> {
    lines.iter().find_map(|line| TrustedCa::parse(line))
}

/// Whether the certificate admits its holder, as any user of the image.
pub(super) fn judge(
    ca: Option<&TrustedCa>,
    people: Option<&People>,
    certificate: &Certificate,
    now: SystemTime,
) -> Result<(), Refusal> {
    let ca = ca.ok_or(Refusal::NoCa)?;
    let key = PublicKey::from_openssh(&ca.key).map_err(|_| Refusal::NoCa)?;
    if certificate.signature_key() != key.key_data() {
        return Err(Refusal::OtherCa);
    }
    if !certificate.cert_type().is_user() {
        return Err(Refusal::HostCertificate);
    }
    // An empty list would mean everybody.
    if certificate.valid_principals() != [ca.principal.as_str()] {
        return Err(Refusal::OtherInstance);
    }
    if certificate.critical_options().iter().next().is_some() {
        return Err(Refusal::Restricted);
    }
    // Once more, so that the login does not hang on what a library does before it asks.
    let seconds = now.duration_since(UNIX_EPOCH).map_err(|_| Refusal::Invalid)?.as_secs();
    certificate
        .validate_at(seconds, [&key.fingerprint(HashAlg::Sha256)])
        .map_err(|_| Refusal::Invalid)?;
    if may_enter(people, holder(certificate)) { Ok(()) } else { Err(Refusal::NotOne) }
}

/// The accounts that these lines of the settings let in; `None`: there are no accounts.
pub(super) fn people(lines: &[String]) -> Option<People> {
    lines.iter().find_map(|line| People::parse(line))
}

/// The account that a certificate is for, if there are accounts.
pub(super) fn holder(certificate: &Certificate) -> Option<UserId> {
    let number = certificate.key_id().strip_prefix("user ")?.split(' ').next()?;
    number.parse().ok().map(UserId)
}

pub(super) fn may_enter(people: Option<&People>, holder: Option<UserId>) -> bool {
    people.is_none_or(|people| holder.is_some_and(|holder| people.0.contains(&holder)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use russh::keys::ssh_key::certificate::{Builder, CertType};
    use russh::keys::{Algorithm, PrivateKey};

    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn key() -> PrivateKey {
        PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()
    }

    fn trusted(ca: &PrivateKey) -> TrustedCa {
        let line = ca.public_key().to_openssh().unwrap();
        TrustedCa { key: line, principal: "vps-7".to_owned() }
    }

    /// Returns a valid certificate, but for the test's change.
    fn signed(ca: &PrivateKey, principal: &str, change: impl FnOnce(&mut Builder)) -> Certificate {
        let mut builder =
            Builder::new([7; 16], key().public_key().key_data().clone(), NOW - 300, NOW + 300)
                .unwrap();
        builder.valid_principal(principal).unwrap();
        change(&mut builder);
        builder.sign(ca).unwrap()
    }

    fn judged(ca: &PrivateKey, certificate: &Certificate, at: u64) -> Result<(), Refusal> {
        judge(Some(&trusted(ca)), None, certificate, UNIX_EPOCH + Duration::from_secs(at))
    }

    #[test]
    fn who_may_not_enter_any_more_is_not_let_in_by_a_certificate_from_before() {
        let ca = key();
        let [of_seven, everybodys] = ["user 7 alice", "everybody alice"].map(|id| {
            signed(&ca, "vps-7", |builder| {
                builder.key_id(id).unwrap();
            })
        });
        let judged = |people: &[i64], certificate| {
            let people = People(people.iter().copied().map(UserId).collect());
            let now = UNIX_EPOCH + Duration::from_secs(NOW);
            judge(Some(&trusted(&ca)), Some(&people), certificate, now)
        };
        assert_eq!(judged(&[3, 7], &of_seven), Ok(()));
        assert_eq!(judged(&[3, 77], &of_seven), Err(Refusal::NotOne));
        assert_eq!(judged(&[], &of_seven), Err(Refusal::NotOne));
        assert_eq!(judged(&[3, 7], &everybodys), Err(Refusal::NotOne));
    }

    #[test]
    fn the_hosts_certificate_for_this_instance_admits_while_it_is_valid() {
        let ca = key();
        let certificate = signed(&ca, "vps-7", |_| {});
        assert_eq!(judged(&ca, &certificate, NOW), Ok(()));
        for at in [NOW - 301, NOW + 300] {
            assert_eq!(judged(&ca, &certificate, at), Err(Refusal::Invalid));
        }
    }

    #[test]
    fn what_is_not_exactly_that_admits_nobody() {
        let ca = key();
        let cases = [
            (signed(&key(), "vps-7", |_| {}), Refusal::OtherCa),
            (signed(&ca, "vps-77", |_| {}), Refusal::OtherInstance),
            (signed(&ca, "root", |_| {}), Refusal::OtherInstance),
            (
                signed(&ca, "vps-7", |b| {
                    b.valid_principal("vps-8").unwrap();
                }),
                Refusal::OtherInstance,
            ),
            (
                signed(&ca, "vps-7", |b| {
                    b.all_principals_valid().unwrap();
                }),
                Refusal::OtherInstance,
            ),
            (
                signed(&ca, "vps-7", |b| {
                    b.cert_type(CertType::Host).unwrap();
                }),
                Refusal::HostCertificate,
            ),
            (
                signed(&ca, "vps-7", |b| {
                    b.critical_option("force-command", "/bin/true").unwrap();
                }),
                Refusal::Restricted,
            ),
        ];
        for (certificate, refusal) in cases {
            assert_eq!(judged(&ca, &certificate, NOW), Err(refusal));
        }
        let good = signed(&ca, "vps-7", |_| {});
        assert_eq!(judge(None, None, &good, SystemTime::now()), Err(Refusal::NoCa));
    }

    #[test]
    fn a_forged_field_is_noticed() {
        let ca = key();
        let good = signed(&ca, "vps-7", |_| {}).to_bytes().unwrap();
        let at = good.windows(5).position(|part| part == b"vps-7").unwrap();
        let mut forged = signed(&ca, "vps-8", |_| {}).to_bytes().unwrap();
        forged[at + 4] = b'7';
        let forged = Certificate::from_bytes(&forged).unwrap();
        assert_eq!(judged(&ca, &forged, NOW), Err(Refusal::Invalid));
    }

    #[test]
    fn the_signer_is_found_among_keys() {
        let ca = trusted(&key());
        let lines = ["# a comment".to_owned(), ca.key.clone(), ca.line()];
        assert_eq!(trusted_ca(&lines), Some(ca));
        assert_eq!(trusted_ca(&lines[..2]), None);
    }
}
