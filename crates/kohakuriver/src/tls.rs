//! The TLS options for browsers and command lines. By default a host that the network can connect to
//! uses TLS.

use std::net::IpAddr;
use std::path::PathBuf;

use kohakuriver_host::{HttpsMode, IpNet};

const HEADING: &str = "TLS for browsers and command lines";

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = HEADING)]
pub struct TlsArgs {
    /// Serve https with a certificate of this host's own CA, which `kohakuriver auth login` pins
    /// [default if --bind is not loopback].
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "no_tls"])]
    tls: bool,
    /// Serve https with this certificate chain, in PEM; reloaded on changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve plain http even if --bind is not loopback; the network can read the traffic.
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    no_tls: bool,
    /// Address or network of a TLS proxy in front, which sets X-Forwarded-For and X-Forwarded-Proto;
    /// repeatable.
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub trusted_proxy: Vec<IpNet>,
    /// Additional name of this host, accepted in URLs and included in its certificate; repeatable.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
}

impl TlsArgs {
    /// Returns the mode from the options and the listening address.
    pub fn mode(&self, bind: IpAddr) -> HttpsMode {
        if let (Some(cert), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) {
            return HttpsMode::Files { cert, key };
        }
        let plain = self.no_tls || bind.is_loopback() || !self.trusted_proxy.is_empty();
        if self.tls || !plain { HttpsMode::OwnCa } else { HttpsMode::Off }
    }

    /// Returns these names and those of `--name`.
    pub fn names(&self, own: &[String]) -> Vec<String> {
        own.iter().chain(&self.name).cloned().collect()
    }
}

/// Parses a network; a single address is a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
    network.map_err(|_| "write an address, or a network like 10.0.0.0/8".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        tls: TlsArgs,
    }

    fn parse(flags: &str) -> Result<TlsArgs, clap::Error> {
        let words = std::iter::once("host").chain(flags.split_whitespace());
        Line::try_parse_from(words).map(|line| line.tls)
    }

    fn mode(flags: &str, bind: &str) -> HttpsMode {
        parse(flags).unwrap().mode(bind.parse().unwrap())
    }

    #[test]
    fn network_address_uses_tls_unless_disabled() {
        for (flags, bind, expected) in [
            ("", "127.0.0.1", HttpsMode::Off),
            ("", "::1", HttpsMode::Off),
            ("", "0.0.0.0", HttpsMode::OwnCa),
            ("", "10.0.0.5", HttpsMode::OwnCa),
            ("--tls", "127.0.0.1", HttpsMode::OwnCa),
            ("--no-tls", "0.0.0.0", HttpsMode::Off),
            ("--trusted-proxy 10.0.0.9", "0.0.0.0", HttpsMode::Off),
            ("--trusted-proxy 10.0.0.9 --tls", "0.0.0.0", HttpsMode::OwnCa),
        ] {
            assert_eq!(mode(flags, bind), expected, "{flags} {bind}");
        }
        let files = mode("--tls-cert c.pem --tls-key k.pem", "127.0.0.1");
        assert_eq!(files, HttpsMode::Files { cert: "c.pem".into(), key: "k.pem".into() });
    }

    #[test]
    fn conflicting_tls_options_are_rejected() {
        for flags in [
            "--tls-cert c.pem",
            "--tls-key k.pem",
            "--tls --no-tls",
            "--tls --tls-cert c.pem --tls-key k.pem",
            "--no-tls --tls-cert c.pem --tls-key k.pem",
            "--trusted-proxy river.lab",
        ] {
            assert!(parse(flags).is_err(), "{flags}");
        }
        let networks = parse("--trusted-proxy 10.0.0.0/8 --trusted-proxy ::1").unwrap();
        assert_eq!(networks.trusted_proxy[1].to_string(), "::1/128");
    }
}
