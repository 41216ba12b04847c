//! `kohakuriver forward`: local ports that lead to services in a VPS.
//!
//! Every connection has its own stream end to end, so flow control slows only the slow one. The
//! listeners stay open while the host, node or VPS is away; new connections wait for a limited time.

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
use crate::vps::vocabulary;
use ports::PortPair;

/// Time limit of a connection that waits for a host or node.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
PORT is the port inside the VPS; REMOTE:LOCAL listens on another local port, 0 on any free one.
Services on the VPS's 127.0.0.1 are forwarded too. Ctrl-C ends the command.

Examples:
  kohakuriver forward web 8080
  kohakuriver forward web 8888 --local-port 9999
  kohakuriver forward db 5432:15432 6379
  kohakuriver forward game 27015 --proto udp
  kohakuriver forward web 8080 --local-host 0.0.0.0    open to your whole network")]
pub struct ForwardArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    /// Port inside the VPS, or REMOTE:LOCAL; repeatable.
    #[arg(value_name = "PORT", required = true, num_args = 1..)]
    ports: Vec<PortPair>,
    /// Local port, if only one port is forwarded [default: the port inside the VPS].
    #[arg(short, long, value_name = "PORT")]
    local_port: Option<u16>,
    /// Local address to listen on [default: 127.0.0.1, or 127.0.0.2 if you are logged in to a host by
    /// http on loopback].
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    local_host: Option<IpAddr>,
    /// Protocol, tcp or udp.
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
        text => text
            .parse()
            .map_err(|_| "write an address of this computer, for example 127.0.0.1".into()),
    }
}

/// Returns the default listening address. A browser sends the cookie of `127.0.0.1:8000` to every
/// port of 127.0.0.1, so a login session of a host at that address would go to the service behind
/// a forward. To the browser, another loopback address is another site.
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

/// A forwarded port in `--json` output.
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
    // Reports an unavailable VPS at once, not at the first connection.
    let ping = context.api.stream(args.vps.as_str(), &StreamTarget::Ping).await;
    drop(ping.map_err(vocabulary::with_list_hint)?);
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
                return Err(CommandError::usage("the local port is given twice")
                    .hint("leave out --local-port or the part after the colon"));
            }
            (Some(_), _) => {
                return Err(CommandError::usage("--local-port needs exactly one port")
                    .hint("for several ports write REMOTE:LOCAL for each"));
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
            let hint =
                format!("use a free port: kohakuriver forward {} {}:0", args.vps, pair.remote);
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

/// Opens streams into the VPS for new connections.
struct Way {
    api: crate::api::Api,
    vps: VpsRef,
    out: crate::ui::Output,
}

impl Way {
    /// Opens a stream; waits for a host or node that is temporarily away.
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

    /// Prints the error of a failed connection; the others continue.
    fn complain(&self, failure: &CommandError) {
        self.out.note(format!("error: {}", failure.message.trim_end()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_recognized() {
        for host in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "::1", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "river.lab", "localhost.evil.example", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
