//! `kohakuriver ssh`: the user's own ssh, through the host, into a VPS.

pub mod certificate;
mod config;
mod connect;
mod forward;
mod known_hosts;
pub mod proxy;
mod route;

use std::path::PathBuf;

pub use route::shell_word;

use clap_complete::ArgValueCandidates;

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "\
It ends with ssh's own exit code. Plain OpenSSH gets there too:
  ssh -J you@host:8002 root@web
  kohakuriver ssh config --output ~/.ssh/kohakuriver.conf    for scp, rsync and editors

Examples:
  kohakuriver ssh web
  kohakuriver ssh web -- nvidia-smi -L
  kohakuriver ssh web -u ubuntu -i ~/.ssh/lab_key"
)]
pub struct SshArgs {
    #[command(subcommand)]
    command: Option<SshCommand>,
    #[command(flatten)]
    connect: OptionalConnect,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum SshCommand {
    /// Print OpenSSH configuration for all running VPSes.
    Config(config::ConfigArgs),
    /// Log in to a VPS (the default)
    #[command(hide = true)]
    Connect(ConnectArgs),
}

/// The arguments of `ssh VPS`; the VPS is absent if a subcommand is given.
#[derive(clap::Args, Clone, Debug)]
struct OptionalConnect {
    /// Id or name of the VPS.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Option<VpsRef>,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args, Clone, Debug)]
struct ConnectArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: VpsRef,
    #[command(flatten)]
    how: How,
}

/// The options of a login.
#[derive(clap::Args, Clone, Debug)]
struct How {
    /// User inside the VPS.
    #[arg(short, long, value_name = "NAME", default_value = "root")]
    user: String,
    /// Private key to log in with [default: a certificate if the host has accounts, the key
    /// generated for this VPS, then ssh's own].
    #[arg(short = 'i', long, value_name = "PATH")]
    key: Option<PathBuf>,
    /// Port of the host's SSH gateway [env: KOHAKURIVER_SSH_PROXY_PORT] [default: 8002].
    #[arg(long, value_name = "PORT")]
    proxy_port: Option<u16>,
    /// Forward this port of 127.0.0.1 to the VPS's SSH instead of logging in; 0 picks a free
    /// port.
    #[arg(long, value_name = "PORT", conflicts_with = "command")]
    local_port: Option<u16>,
    /// Command to run instead of a shell.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(context: &Context, args: SshArgs) -> Result<(), CommandError> {
    let (vps, how) = match args.command {
        Some(SshCommand::Config(args)) => return config::run(context, &args).await,
        Some(SshCommand::Connect(args)) => (args.vps, args.how),
        None => match args.connect.vps {
            Some(vps) => (vps, args.connect.how),
            None => {
                return Err(CommandError::usage("no VPS given").hint("kohakuriver ssh NAME"));
            }
        },
    };
    match how.local_port {
        Some(port) => forward::run(context, &vps, &how, port).await,
        None => connect::run(context, &vps, &how).await,
    }
}
