//! `kohakuriver forward`: local ports that lead to services in a VPS.
//!
//! Every connection has a stream of its own all the way, so the kernel's flow control holds back
//! exactly the one that is slow. The listeners stay whatever happens to host, node or VPS; what
//! connects meanwhile is kept waiting for a while.

mod ports;
mod tcp;
mod udp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use kohakuriver_agent_protocol::StreamTarget;
use serde::Serialize;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::{Instant, sleep};

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps;
use ports::PortPair;

/// How long a connection waits for a host or node that is away.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A port is the one inside the VPS; REMOTE:LOCAL listens on another one here, and 0 on any free one.
Services that listen on 127.0.0.1 inside the VPS only are reached as well. Ctrl-C ends it.

Examples:
  kohakuriver forward web 8080
  kohakuriver forward web 8888 --local-port 9999
  kohakuriver forward db 5432:15432 6379
  kohakuriver forward game 27015 --proto udp
  kohakuriver forward web 8080 --local-host 0.0.0.0    for your whole network: mind who is there")]
pub struct ForwardArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Port inside the VPS, or REMOTE:LOCAL; several are possible
    #[arg(value_name = "PORT", required = true, num_args = 1..)]
    ports: Vec<PortPair>,
    /// Local port, where one port is forwarded [default: the same as inside]
    #[arg(short, long, value_name = "PORT")]
    local_port: Option<u16>,
    /// Local address to listen on [default: 127.0.0.1, or 127.0.0.2 where you are logged in to a host
    /// that this machine reaches by http on loopback]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    local_host: Option<IpAddr>,
    /// tcp or udp
    #[arg(short, long, value_name = "PROTO", default_value = "tcp")]
    proto: Proto,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Proto {
    Tcp,
    Udp,
}

fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text.parse().map_err(|_| "write an address of this machine, as 127.0.0.1".into()),
    }
}

/// Where to listen unless told otherwise. A browser sends the cookie of `127.0.0.1:8000` to every
/// port of 127.0.0.1, so the session of a host that is reached there would go to the service behind
/// a forward. Another address of this machine is another name for the browser.
fn default_address(context: &Context) -> Result<IpAddr, CommandError> {
    let is_shared = !context.api.is_https() && is_loopback(context.api.host());
    let is_logged_in = is_shared && context.api.token()?.is_some();
    Ok(IpAddr::from(if is_logged_in { [127, 0, 0, 2] } else { [127, 0, 0, 1] }))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// One forwarded port, for `--json`.
#[derive(Serialize)]
struct Forwarded {
    local_host: IpAddr,
    local_port: u16,
    remote_port: u16,
    proto: Proto,
}

pub async fn run(context: &Context, args: ForwardArgs) -> Result<(), CommandError> {
    let ports = args.pairs()?;
    let local_host = match args.local_host {
        Some(address) => address,
        None => default_address(context)?,
    };
    // Says at once what is wrong with the VPS, rather than at the first connection.
    let ping = context.api.stream(args.vps.as_str(), &StreamTarget::Ping).await;
    drop(ping.map_err(vps::with_list_hint)?);
    let _ = kohakuriver_net::raise_file_limit();
    let mut listeners = Vec::new();
    let mut shown = Vec::new();
    for pair in &ports {
        let listener = Listener::bind(&args, local_host, pair).await?;
        shown.push(Forwarded {
            local_host,
            local_port: listener.port(),
            remote_port: pair.remote,
            proto: args.proto,
        });
        listeners.push((listener, pair.remote));
    }
    if context.out.json {
        context.out.json(&shown);
    } else {
        for one in &shown {
            let local = std::net::SocketAddr::new(one.local_host, one.local_port);
            context.out.line(format!("{local} -> {}:{}", args.vps, one.remote_port));
        }
        context.out.note("forwarding; Ctrl-C ends it");
    }
    let way = Arc::new(Way { api: context.api.clone(), vps: args.vps.clone(), out: context.out });
    let serving = listeners.into_iter().map(|(listener, remote)| {
        let way = Arc::clone(&way);
        Box::pin(async move {
            match listener {
                Listener::Tcp(listener) => tcp::serve(way, listener, remote).await,
                Listener::Udp(socket) => udp::serve(way, socket, remote).await,
            }
        })
    });
    futures_util::future::join_all(serving).await;
    Ok(())
}

impl ForwardArgs {
    fn pairs(&self) -> Result<Vec<PortPair>, CommandError> {
        let mut pairs = self.ports.clone();
        match (self.local_port, pairs.as_mut_slice()) {
            (None, _) => {}
            (Some(local), [only]) if only.local.is_none() => only.local = Some(local),
            (Some(_), [_]) => {
                return Err(CommandError::usage("the local port was given twice")
                    .hint("leave --local-port or the part behind the colon out"));
            }
            (Some(_), _) => {
                return Err(CommandError::usage("--local-port needs exactly one port")
                    .hint("write REMOTE:LOCAL for each of several"));
            }
        }
        Ok(pairs)
    }
}

enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    async fn bind(
        args: &ForwardArgs,
        local_host: IpAddr,
        pair: &PortPair,
    ) -> Result<Self, CommandError> {
        let place = (local_host, pair.local.unwrap_or(pair.remote));
        let bound = match args.proto {
            Proto::Tcp => TcpListener::bind(place).await.map(Self::Tcp),
            Proto::Udp => UdpSocket::bind(place).await.map(Self::Udp),
        };
        bound.map_err(|error| {
            let why = crate::api::plain(&error);
            let (host, port) = place;
            let hint = format!("take another: kohakuriver forward {} {}:0", args.vps, pair.remote);
            CommandError::request(format!("port {port} of {host} cannot be used: {why}")).hint(hint)
        })
    }

    fn port(&self) -> u16 {
        let address = match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        address.map_or(0, |address| address.port())
    }
}

/// How every connection gets into the VPS.
struct Way {
    api: crate::api::Api,
    vps: VpsRef,
    out: crate::ui::Output,
}

impl Way {
    /// Opens a stream; a host or node that is away for a moment is waited for.
    async fn open(&self, target: &StreamTarget) -> Result<crate::api::Stream, CommandError> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let failure = match self.api.stream(self.vps.as_str(), target).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => failure,
            };
            if !failure.may_pass() || began.elapsed() > PATIENCE {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// One line for each connection that came to nothing: the others go on.
    fn complain(&self, failure: &CommandError) {
        self.out.note(format!("error: {}", failure.message.trim_end()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_on_loopback_are_told_from_others() {
        for host in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "::1", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "river.lab", "localhost.evil.example", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
