//! `kohakuriver host`: the control plane alone.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use kohakuriver_cli::GlobalArgs;
use kohakuriver_host::{Clock, Host, HostConfig, StartError};
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::pki::PkiError;

use crate::auth::{self, AuthArgs};
use crate::exit::{Exit, FAILED, NOT_READY, USAGE};
use crate::history::HistoryArgs;
use crate::tls::TlsArgs;
use crate::{logging, paths, signals};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver host                                       on this computer, API on loopback
  kohakuriver host --advertise 10.0.0.5                  runners connect to 10.0.0.5
  kohakuriver host --bind 0.0.0.0                        for a team: https and login
  kohakuriver host --tls                                 https with a certificate of its own CA
  kohakuriver node token create                          then run its output on another computer")]
pub struct HostArgs {
    /// Data directory [default: /var/lib/kohakuriver as root].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address for the API and the SSH gateway.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    history: HistoryArgs,
    /// Port of the SSH gateway.
    #[arg(long, value_name = "PORT", env = "KOHAKURIVER_SSH_PROXY_PORT", default_value_t = 8002)]
    ssh_port: u16,
    /// Address that runners connect to (mutual TLS)
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    link_bind: IpAddr,
    /// Port that runners connect to.
    #[arg(long, value_name = "PORT", default_value_t = 8001)]
    link_port: u16,
    /// Address of this computer in join tokens, as seen by runners [default: its host name].
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<String>,
    /// Seconds without contact after which a node's VPSes are `lost`
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    lost_after: u64,
}

pub fn run(args: HostArgs, global: &GlobalArgs) -> Result<(), Exit> {
    let auth = args.auth.mode(args.bind, !args.tls.trusted_proxy.is_empty())?;
    let port = api_port(global)?;
    let advertise = args.advertise.unwrap_or_else(host_name);
    let https = args.tls.mode(args.bind);
    let config = HostConfig {
        data_dir: paths::absolute(paths::data_dir(args.data_dir)).join("host"),
        bind: args.bind,
        port,
        ssh_port: args.ssh_port,
        names: args.tls.names(&[host_name(), advertise.clone()]),
        https,
        trusted_proxies: args.tls.trusted_proxy,
        link_bind: args.link_bind,
        link_port: args.link_port,
        link_address: HostAddress { host: advertise, port: args.link_port },
        lost_after: Duration::from_secs(args.lost_after),
        auth,
        history: args.history.limits(),
        deadlines: kohakuriver_host::Deadlines::default(),
    };
    logging::start();
    runtime()?.block_on(async {
        let shutdown = signals::shutdown().map_err(|error| Exit::from_error(FAILED, &error))?;
        let host = start(config).await?;
        tracing::info!(
            api = host.api_url(), ssh = %host.ssh_address(), link = %host.link_address(),
            "host is up; to add a machine: kohakuriver node token create"
        );
        if let Some(fingerprint) = host.people_fingerprint() {
            tracing::info!(
                fingerprint,
                "API and pages are served with a certificate of this host's own CA; \
                 compare its fingerprint at the first log-in"
            );
        }
        for line in auth::setup_lines(&host).await?.into_iter().flatten() {
            // On lines of its own, not in the log's format, because the operator copies them.
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
        shutdown.cancelled().await;
        host.stop().await;
        Ok(())
    })
}

/// Returns the port from the option, else the environment, else 8000.
pub fn api_port(global: &GlobalArgs) -> Result<u16, Exit> {
    if let Some(port) = global.port {
        return Ok(port);
    }
    match std::env::var("KOHAKURIVER_PORT") {
        Ok(text) => text
            .parse()
            .map_err(|_| Exit::new(USAGE, format!("KOHAKURIVER_PORT='{text}' is not a port"))),
        Err(_) => Ok(8000),
    }
}

/// Starts the host; errors have hints.
pub async fn start(config: HostConfig) -> Result<Host, Exit> {
    Host::start(config, Clock::System).await.map_err(|error| {
        let exit = Exit::from_error(NOT_READY, &error);
        match &error {
            StartError::PortTaken { what, flag, port, .. } => exit.hint(format!(
                "{what} needs it: choose another with {flag} PORT, or find the process that uses it: ss -ltnp 'sport = :{port}'"
            )),
            StartError::AlreadyRunning { .. } => {
                exit.hint("it is in use already: check kohakuriver status, or use another --data-dir")
            }
            StartError::DataDir { .. } => exit.hint("run as root, or use a writable --data-dir"),
            StartError::Https(_) => {
                exit.hint("--tls-cert is the whole chain in PEM, the host's first; --tls-key its key")
            }
            StartError::Pki(PkiError::Clock(_)) => {
                exit.hint("set the clock (timedatectl set-ntp true), then start again")
            }
            StartError::Listen { .. }
            | StartError::Pki(_)
            | StartError::Store { .. }
            | StartError::GatewayKey(_)
            | StartError::UserCa(_) => exit,
        }
    })
}

pub fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

pub fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    // A thousand forwarded connections need a few thousand descriptors.
    let _ = kohakuriver_net::raise_file_limit();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("kohakuriver")
        .build()
        .map_err(|error| Exit::from_error(FAILED, &error))
}
