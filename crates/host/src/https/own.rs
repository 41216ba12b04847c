//! A certificate of the host's own CA, for all names and addresses of this computer.

use std::net::IpAddr;

use kohakuriver_runner_link::pki::Ca;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;

use super::TlsError;
use crate::HostConfig;

/// The bound on names; a computer with more has networks that clients do not use.
const MAX_NAMES: usize = 64;
/// The interval of reading the computer's addresses.
const ADDRESSES_EVERY_MS: i64 = 30_000;

/// The issued certificate, and the conditions that require another.
#[derive(Debug)]
pub struct Own {
    names: Vec<String>,
    issued_ms: i64,
    renew_at_ms: i64,
    looked_at_ms: i64,
}

impl Own {
    pub fn new(host: &HostConfig, ca: &Ca, now_ms: i64) -> Result<(Self, CertifiedKey), TlsError> {
        let names = names(host);
        let (first, renew_at_ms) = issue(ca, &names, now_ms)?;
        Ok((Self { names, issued_ms: now_ms, renew_at_ms, looked_at_ms: now_ms }, first))
    }

    /// Issues another certificate if the old one ends soon or the computer's addresses have
    /// changed.
    pub fn check(&mut self, host: &HostConfig, ca: &Ca, now_ms: i64) -> Option<CertifiedKey> {
        // After a clock was set back, the certificate may not be valid yet.
        let due = now_ms >= self.renew_at_ms || now_ms < self.issued_ms;
        if !due && (now_ms - self.looked_at_ms).abs() < ADDRESSES_EVERY_MS {
            return None;
        }
        self.looked_at_ms = now_ms;
        let names = names(host);
        if !due && names == self.names {
            return None;
        }
        match issue(ca, &names, now_ms) {
            Ok((fresh, renew_at_ms)) => {
                (self.names, self.issued_ms, self.renew_at_ms) = (names, now_ms, renew_at_ms);
                tracing::info!(names = self.names.join(" "), "HTTPS presents a new certificate");
                Some(fresh)
            }
            Err(error) => {
                tracing::warn!(%error, "issuing an HTTPS certificate failed; the old one stays");
                None
            }
        }
    }
}

fn issue(ca: &Ca, names: &[String], now_ms: i64) -> Result<(CertifiedKey, i64), TlsError> {
    let (certificate, renew_at_ms) = ca.issue_people(names, now_ms)?;
    let provider = aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(certificate.chain, certificate.key, &provider)
        .map_err(TlsError::Setup)?;
    Ok((certified, renew_at_ms))
}

/// Lists names first: if there are too many, addresses are left out.
fn names(host: &HostConfig) -> Vec<String> {
    let mut names: Vec<String> = host.names.iter().map(|name| name.to_ascii_lowercase()).collect();
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if host.bind.is_unspecified() {
        let mut addresses = addresses();
        addresses.sort_unstable();
        names.extend(addresses.iter().map(ToString::to_string));
    } else {
        names.push(host.bind.to_string());
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names.truncate(MAX_NAMES);
    names
}

/// Returns the computer's addresses, except those without a meaning on other computers.
fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    interfaces.filter_map(address).filter(|address| !is_local(*address)).collect()
}

fn is_local(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    link_local || address.is_loopback()
}
