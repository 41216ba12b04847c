//! `kohakuriver up`: host and runner on this computer, in one process.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_cli::GlobalArgs;
use kohakuriver_host::{Host, HostConfig, LocalNode};
use kohakuriver_net::Socket;
use kohakuriver_runner::Streams;
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::pki::RunnerIdentity;
use kohakuriver_runner_link::protocol::StreamOpen;

use crate::auth::{self, AuthArgs};
use crate::exit::{Exit, FAILED, NOT_READY};
use crate::history::HistoryArgs;
use crate::host::{api_port, runtime};
use crate::runner::{self, Places};
use crate::tls::TlsArgs;
use crate::{findings, host, logging, signals};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ctrl-C stops host and runner; VPSes keep running, and the next 'up' manages them again.

Examples:
  kohakuriver up                             then, in another shell: kohakuriver vps create --ssh
  kohakuriver up --data-dir ~/river --port 9000 --ssh-port 9002")]
pub struct UpArgs {
    /// Port of the SSH gateway.
    #[arg(long, value_name = "PORT", env = "KOHAKURIVER_SSH_PROXY_PORT", default_value_t = 8002)]
    ssh_port: u16,
    /// Port of the link between host and runner; 0 takes any free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    link_port: u16,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    history: HistoryArgs,
    #[command(flatten)]
    places: Places,
}

pub fn run(args: UpArgs, global: &GlobalArgs) -> Result<(), Exit> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let port = api_port(global)?;
    let auth = args.auth.mode(loopback, !args.tls.trusted_proxy.is_empty())?;
    let config = HostConfig {
        data_dir: args.places.root().join("host"),
        bind: loopback,
        port,
        ssh_port: args.ssh_port,
        names: args.tls.names(&[host::host_name()]),
        https: args.tls.mode(loopback),
        trusted_proxies: args.tls.trusted_proxy,
        link_bind: loopback,
        link_port: args.link_port,
        link_address: HostAddress { host: loopback.to_string(), port: args.link_port },
        lost_after: Duration::from_secs(30),
        auth,
        history: args.history.limits(),
        deadlines: kohakuriver_host::Deadlines::default(),
    };
    logging::start();
    runtime()?.block_on(async {
        let shutdown = signals::shutdown().map_err(|error| Exit::from_error(FAILED, &error))?;
        let host = host::start(config).await?;
        let runner_config = args.places.config()?;
        // Before joining, because another runner's membership must not be changed.
        let lock = runner::lock(&runner_config.data_dir)?;
        let identity = identity(&host, &runner_config.data_dir).await?;
        let runner = runner::start(runner_config, identity.clone(), lock).await?;
        host.set_local(&identity.node_id, Arc::new(SameProcess(runner.streams())));
        let setup = auth::setup_lines(&host).await?;
        greet(&host, &identity, &findings::lines(&runner.inventory().await), setup);
        let result = runner.run(shutdown).await;
        host.stop().await;
        say("stopped; VPSes go on running, and the next 'kohakuriver up' finds them again");
        result.map_err(|error| Exit::from_error(FAILED, &error))
    })
}

/// The in-process transport from the host to the runner.
#[derive(Debug)]
struct SameProcess(Arc<Streams>);

impl LocalNode for SameProcess {
    fn open(
        &self,
        open: StreamOpen,
    ) -> Pin<Box<dyn Future<Output = Result<Socket, String>> + Send + '_>> {
        Box::pin(async move { self.0.open(&open).await.map_err(|error| error.to_string()) })
    }
}

/// Returns this computer's node identity: joins at the first start, and again under the old name if
/// its part of the membership was lost.
async fn identity(host: &Host, dir: &Path) -> Result<RunnerIdentity, Exit> {
    let failed = |error: &dyn std::error::Error| Exit::from_error(NOT_READY, error);
    let known = RunnerIdentity::load(dir).map_err(|error| failed(&error))?;
    if let Some(mut identity) = known {
        if !host.issued(&identity) {
            let message = format!(
                "this computer is node '{}' of another cluster, with the host {}",
                identity.node_name, identity.host_address
            );
            return Err(Exit::new(NOT_READY, message).hint(format!(
                "kohakuriver runner serves it there; or give another --data-dir; or leave that cluster: rm {}",
                dir.join("identity.json").display()
            )));
        }
        if host.knows(&identity.node_id).await.map_err(|error| failed(&error))? {
            // The link's port may have changed since the last start.
            identity.host_address = host.link_address().clone();
            return Ok(identity);
        }
    }
    let name = runner::default_name()?;
    let token = host.create_join_token(&name).await.map_err(|error| failed(&error))?;
    runner::join(&token, None, &name, dir).await
}

fn greet(host: &Host, identity: &RunnerIdentity, findings: &[String], setup: Option<[String; 2]>) {
    say(&format!(
        "kohakuriver {} is up on node '{}'",
        env!("CARGO_PKG_VERSION"),
        identity.node_name
    ));
    for line in findings {
        say(&format!("  {line}"));
    }
    let (api, ssh) = (host.api_address(), host.ssh_address());
    let scheme = host.scheme();
    say(&format!("  API      {scheme}://{api}   SSH gateway {ssh}"));
    if let Some(fingerprint) = host.people_fingerprint() {
        say(&format!("  its CA   {fingerprint} (compare it at the first login)"));
    }
    let mut settings = Vec::new();
    if scheme == "https" {
        settings.push(format!("KOHAKURIVER_HOST=https://{}", api.ip()));
    }
    if api.port() != 8000 || ssh.port() != 8002 {
        settings.push(format!("KOHAKURIVER_PORT={}", api.port()));
        settings.push(format!("KOHAKURIVER_SSH_PROXY_PORT={}", ssh.port()));
    }
    if !settings.is_empty() {
        say(&format!("in other shells first: export {}", settings.join(" ")));
    }
    if let Some(lines) = setup {
        lines.iter().for_each(|line| say(line));
        return;
    }
    say("next: kohakuriver vps create --name first --ssh   then: kohakuriver ssh first");
}

fn say(line: &str) {
    // Without standard error the line has no reader.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
