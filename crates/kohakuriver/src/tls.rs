//! The flags that say how people's connections are protected, and what follows where none is
//! given: what can be reached from the network is encrypted.

use std::net::IpAddr;
use std::path::PathBuf;

use kohakuriver_host::{HttpsMode, IpNet};

const HEADING: &str = "TLS for browsers and command lines";

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = HEADING)]
pub struct TlsArgs {
    /// Serve https with a certificate of this host's own CA, which `kohakuriver auth login` pins
    /// [default where --bind is not loopback]
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "no_tls"])]
    tls: bool,
    /// Serve https with this certificate and its chain, PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve plain http although --bind is not loopback: everybody in between can read along
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    no_tls: bool,
    /// Address or network of a proxy in front that does TLS and says in X-Forwarded-For and
    /// X-Forwarded-Proto for whom; may be repeated
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub trusted_proxy: Vec<IpNet>,
    /// Another name of this host, for its certificate and for pages that are reached by it; may be
    /// repeated
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
}

impl TlsArgs {
    /// What was asked for, or what fits where the API listens.
    pub fn mode(&self, bind: IpAddr) -> HttpsMode {
        if let (Some(cert), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) {
            return HttpsMode::Files { cert, key };
        }
        let plain = self.no_tls || bind.is_loopback() || !self.trusted_proxy.is_empty();
        if self.tls || !plain { HttpsMode::OwnCa } else { HttpsMode::Off }
    }

    /// These and what `--name` adds.
    pub fn names(&self, own: &[String]) -> Vec<String> {
        own.iter().chain(&self.name).cloned().collect()
    }
}

/// A lone address is a network of one.
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
    fn what_the_network_can_reach_is_encrypted_unless_somebody_says_otherwise() {
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
    fn what_makes_no_sense_together_is_refused() {
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
