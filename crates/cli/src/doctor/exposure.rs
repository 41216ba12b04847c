//! Exposure of the host: accounts on or off, and the networks it is reachable from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use kohakuriver_api::User;

use super::finding::{Finding, State};
use super::host::LIMIT;
use crate::api::{Probe, takes_connections};
use crate::context::Context;

const OFF_ADVICE: &str =
    "start it with --auth, or on loopback only; accounts begin with the invitation it prints";

pub async fn inspect(context: &Context, probe: &Probe) -> Vec<Finding> {
    let status = match context.api.auth_status().await {
        Ok(status) => status,
        Err(failure) => return vec![Finding::of("accounts", State::Bad, failure)],
    };
    if !status.auth_enabled {
        return vec![open(probe.address).await];
    }
    if status.needs_setup {
        return vec![Finding::warn(
            "accounts",
            "on, but there is no admin yet",
            "use the invitation the host printed: kohakuriver auth register --token TOKEN",
        )];
    }
    let who = match context.api.me().await {
        Ok(user) => who(&user),
        Err(failure) => Finding::of("log-in", State::Warn, failure),
    };
    vec![Finding::ok("accounts", "on: everybody has to log in"), who]
}

fn who(user: &User) -> Finding {
    if crate::auth::is_somebody(user) {
        return Finding::ok("log-in", format!("you are {} ({})", user.username, user.role));
    }
    Finding::warn("log-in", "not logged in, so some checks were skipped", "kohakuriver auth login")
}

/// Judges a host without accounts, where every client has full access.
async fn open(address: SocketAddr) -> Finding {
    if !address.ip().is_loopback() {
        return judge_open(Some(address));
    }
    // It may listen on the network besides.
    let outside = own_address().map(|own| SocketAddr::new(own, address.port()));
    let reached = match outside {
        Some(outside) => takes_connections(outside, LIMIT).await.then_some(outside),
        None => None,
    };
    judge_open(reached)
}

fn judge_open(reached: Option<SocketAddr>) -> Finding {
    match reached {
        None => Finding::ok("accounts", "off: every user of this machine has full access"),
        Some(address) => Finding::bad(
            "accounts",
            format!(
                "off, and {address} can be reached: everybody on that network may do everything"
            ),
            OFF_ADVICE,
        ),
    }
}

/// Returns this machine's address on its network. Nothing is sent: the system only determines the
/// route to a documentation address.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_without_accounts_is_bad_only_if_exposed() {
        assert_eq!(judge_open(None).state, State::Ok);
        let found = judge_open(Some("10.0.0.5:8000".parse().unwrap()));
        assert_eq!(found.state, State::Bad);
        assert!(found.advice.unwrap().contains("--auth"));
    }

    #[test]
    fn nobody_in_particular_is_told_to_log_in() {
        let of = |name: &str| User { username: name.to_owned(), ..User::default() };
        assert_eq!(who(&of("ann")).state, State::Ok);
        assert_eq!(who(&of("_anonymous")).state, State::Warn);
    }
}
