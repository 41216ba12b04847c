//! Checks of the host from this machine.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::finding::{Finding, State};
use super::{cluster, exposure};
use crate::api::{Probe, takes_connections};
use crate::context::Context;
use crate::error::Kind;

/// The timeout of each check.
pub const LIMIT: Duration = Duration::from_secs(3);
/// The clock skew that a response's delay can explain.
const SKEW_SECONDS: i64 = 5;
/// The clock skew from which certificates and tokens are misjudged.
const BAD_SKEW_SECONDS: i64 = 60;
/// The remaining seconds from which a certificate needs attention; the host's own CA renews earlier.
const SOON: i64 = 14 * 86_400;

pub async fn inspect(context: &Context) -> Vec<Finding> {
    let api = &context.api;
    let probe = match api.probe().await {
        Ok(probe) => probe,
        Err(failure) => {
            let check = if failure.kind == Kind::Distrusted { "tls" } else { "host" };
            return vec![Finding::of(check, State::Bad, failure)];
        }
    };
    let mut findings = vec![version(&api.place(), &probe.health.version)];
    findings.push(tls(context, &probe));
    findings.extend(probe.skew_seconds.map(|skew| clock("clock", "the host's clock", skew)));
    findings.push(gateway(context, probe.address).await);
    findings.extend(exposure::inspect(context, &probe).await);
    findings.extend(cluster::inspect(context).await);
    findings
}

fn version(place: &str, theirs: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    if theirs == ours {
        return Finding::ok("host", format!("{place} answers, version {theirs}"));
    }
    Finding::warn(
        "host",
        format!("{place} has version {theirs}, this program is version {ours}"),
        "copy the same executable to both",
    )
}

fn tls(context: &Context, probe: &Probe) -> Finding {
    let api = &context.api;
    if !api.is_https() {
        if probe.address.ip().is_loopback() {
            return Finding::ok("tls", "plain http, within this machine");
        }
        return Finding::bad(
            "tls",
            "plain http: everybody in between reads all, tokens and terminals too",
            format!(
                "start the host with --tls, then: kohakuriver auth login {}",
                api.url().replacen("http:", "https:", 1)
            ),
        );
    }
    let whose = if api.is_pinned() { "the host's own CA, pinned" } else { "a CA of the system" };
    judge_certificate(whose, probe.certificates.first(), Timestamp::now())
}

fn judge_certificate(
    whose: &str,
    certificate: Option<&CertificateDer<'_>>,
    now: Timestamp,
) -> Finding {
    let end = certificate
        .and_then(|der| X509Certificate::from_der(der).ok())
        .map(|(_, read)| read.validity().not_after.timestamp());
    let Some(left) = end.map(|end| end - now.as_second()) else {
        return Finding::ok("tls", format!("https, by {whose}"));
    };
    let days = left / 86_400;
    let found = format!("https, by {whose}; the certificate is valid for {days} more days");
    let advice = "renew the files of --tls-cert; they are read again by themselves";
    match left {
        ..=0 => Finding::bad("tls", "the host's certificate has expired", advice),
        left if left < SOON => Finding::warn("tls", found, advice),
        _ => Finding::ok("tls", found),
    }
}

/// Judges the difference between two clocks.
pub fn clock(check: &'static str, whose: &str, skew_seconds: i64) -> Finding {
    let (far, way) = (skew_seconds.abs(), if skew_seconds > 0 { "ahead of" } else { "behind" });
    if far <= SKEW_SECONDS {
        return Finding::ok(check, format!("{whose} agrees with this machine's"));
    }
    let found = format!("{whose} is {far} seconds {way} this machine's");
    let advice = "timedatectl set-ntp true, on both";
    match far > BAD_SKEW_SECONDS {
        true => Finding::bad(check, found, advice),
        false => Finding::warn(check, found, advice),
    }
}

async fn gateway(context: &Context, api: SocketAddr) -> Finding {
    let port = context.settings.ssh_proxy_port.value;
    if takes_connections(SocketAddr::new(api.ip(), port), LIMIT).await {
        return Finding::ok("ssh gateway", format!("port {port} accepts connections"));
    }
    Finding::warn(
        "ssh gateway",
        format!("port {port} accepts no connections from here"),
        "`kohakuriver ssh` works all the same; for ssh -J open the port, or set KOHAKURIVER_SSH_PROXY_PORT",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_and_versions_are_judged_by_difference() {
        let state = |skew| clock("clock", "the clock", skew).state;
        assert_eq!([state(0), state(-5)], [State::Ok, State::Ok]);
        assert_eq!([state(6), state(-60)], [State::Warn, State::Warn]);
        assert_eq!([state(61), state(-3600)], [State::Bad, State::Bad]);
        assert_eq!(version("a:1", env!("CARGO_PKG_VERSION")).state, State::Ok);
        assert_eq!(version("a:1", "0.0.0").state, State::Warn);
    }

    #[test]
    fn a_certificate_is_renewed_before_its_end() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["river.lab".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let certificate = params.self_signed(&key).unwrap();
        let at = |day: &str| {
            let now = format!("{day}T00:00:00Z").parse().unwrap();
            judge_certificate("a CA", Some(certificate.der()), now)
        };
        assert_eq!(at("2026-01-02").state, State::Ok);
        assert!(at("2026-01-02").found.contains("89 more days"));
        assert_eq!(at("2026-03-25").state, State::Warn);
        assert_eq!(at("2026-04-02").state, State::Bad);
    }
}
