//! The flags that say whether people log in, and what follows where none is given: whoever can
//! be reached from the network asks who one is.

use std::net::IpAddr;
use std::time::Duration;

use kohakuriver_host::{AuthConfig, Host};

use crate::exit::{Exit, NOT_READY, USAGE};

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Logging in")]
pub struct AuthArgs {
    /// People log in, and are admins, operators, users or viewers [default where the host can be
    /// reached from the network]
    #[arg(long, conflicts_with = "no_auth")]
    auth: bool,
    /// Nobody logs in: whoever reaches this host may do everything [default on loopback]
    #[arg(long)]
    no_auth: bool,
    /// With --no-auth on an address that can be reached from the network: yes, everybody there
    /// may do everything
    #[arg(long)]
    open_to_the_network_without_login: bool,
    /// Days after which a request that no operator decided on is rejected
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..=3650))]
    request_days: u64,
    /// Hours that a browser stays logged in
    #[arg(long, value_name = "HOURS", default_value_t = 720, value_parser = clap::value_parser!(u64).range(1..=87600))]
    session_hours: u64,
}

impl AuthArgs {
    /// What was asked for, or what fits where the host listens.
    ///
    /// # Errors
    /// It would be open to everybody and nobody has said so outright.
    pub fn mode(&self, bind: IpAddr, behind_proxy: bool) -> Result<AuthConfig, Exit> {
        let reachable = !bind.is_loopback() || behind_proxy;
        let open = self.open_to_the_network_without_login;
        let off = self.no_auth || (open && !self.auth);
        if reachable && off && !open {
            let message =
                format!("{bind} can be reached from the network, and nobody would log in");
            let hint = "leave --no-auth out, keep --bind 127.0.0.1 and come in by an SSH tunnel, \
                or say --open-to-the-network-without-login too";
            return Err(Exit::new(USAGE, message).hint(hint));
        }
        let hour = Duration::from_secs(3600);
        let hours = |hours: u64| hour * u32::try_from(hours).unwrap_or(u32::MAX);
        Ok(AuthConfig {
            enabled: self.auth || (reachable && !off),
            session_life: hours(self.session_hours),
            request_life: hours(24 * self.request_days),
        })
    }
}

/// What to tell whoever starts a host that nobody administrates yet.
pub async fn setup_lines(host: &Host) -> Result<Option<[String; 2]>, Exit> {
    let invited = host.setup_invitation().await;
    let invited = invited.map_err(|error| Exit::from_error(NOT_READY, &error))?;
    Ok(invited.map(|token| {
        let place = format!("{}://{}", host.scheme(), host.api_address());
        [
            format!("nobody administrates this cluster yet: open {place}/welcome#invite={token}"),
            format!(
                "or type kohakuriver auth register {place} --token {token}   (once, within a day)"
            ),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        auth: AuthArgs,
    }

    fn enabled(flags: &str, bind: &str, proxy: bool) -> Option<bool> {
        let words = std::iter::once("host").chain(flags.split_whitespace());
        let args = Line::try_parse_from(words).unwrap().auth;
        args.mode(bind.parse().unwrap(), proxy).ok().map(|config| config.enabled)
    }

    #[test]
    fn what_the_network_can_reach_asks_who_one_is_unless_somebody_says_otherwise_outright() {
        let open = "--open-to-the-network-without-login";
        for (flags, bind, proxy, expected) in [
            ("", "127.0.0.1", false, Some(false)),
            ("--auth", "127.0.0.1", false, Some(true)),
            ("--no-auth", "127.0.0.1", false, Some(false)),
            ("", "0.0.0.0", false, Some(true)),
            ("", "127.0.0.1", true, Some(true)),
            ("--no-auth", "0.0.0.0", false, None),
            ("--no-auth", "127.0.0.1", true, None),
            (open, "0.0.0.0", false, Some(false)),
            (&format!("--no-auth {open}"), "10.0.0.5", false, Some(false)),
            (&format!("--auth {open}"), "10.0.0.5", false, Some(true)),
        ] {
            assert_eq!(enabled(flags, bind, proxy), expected, "{flags} {bind} {proxy}");
        }
    }
}
