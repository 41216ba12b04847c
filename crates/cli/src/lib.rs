//! The client commands of `kohakuriver`: every command that is not a server.
//!
//! Standard output is data only, so that it can be piped; progress, questions, notes and errors
//! go to standard error. With `--json` the output is the API's object or array and nothing else.
//!
//! Exit codes are fixed:
//!
//! ```text
//!   0    done
//!   1    the request failed: refused, not found, in conflict, failed on the node
//!   2    the command line, the environment or the configuration file is wrong
//!   3    the host was not reachable, or did not prove to be the host
//!   4,5  of `up`, `host` and `runner`: this machine is not ready, the host cannot be joined
//!   127  `ssh` is not installed (otherwise `kohakuriver ssh` ends with ssh's own code)
//!   130  interrupted with Ctrl-C
//!   141  the reader of standard output has gone (`| head`)
//! ```

mod api;
mod approval;
mod ask;
mod audit;
mod auth;
mod complete;
mod completion;
mod config;
mod connect;
mod context;
mod credentials;
mod doctor;
mod duration;
mod error;
mod escape;
mod files;
mod forward;
mod identity;
mod keys;
mod node;
mod qemu;
mod reference;
mod settings;
mod ssh;
mod status;
mod stdout;
mod terminal;
mod trust;
mod tty;
mod ui;
mod version;
mod vps;
mod wait;

use std::process::ExitCode;

pub use complete::complete_if_asked;
pub use doctor::data::directory as data_dir;
pub use qemu::{OnNode, QemuCommand};
// For the commands that need no host: they talk as these do.
pub use ui::{Fit, Grid, Output, Progress, Tone, ago_ms};

use context::Context;
use error::CommandError;

/// The text of the root command's `--help`.
pub const AFTER_HELP: &str = "\
Settings: flags, then KOHAKURIVER_HOST, KOHAKURIVER_PORT and KOHAKURIVER_SSH_PROXY_PORT, then the
file that `kohakuriver config path` names, then localhost, 8000 and 8002. KOHAKURIVER_TOKEN says
who you are in place of a log-in; it goes over https or to this machine only (anywhere with
KOHAKURIVER_INSECURE=1).

Exit codes: 0 done; 1 the request failed; 2 wrong usage; 3 host not reachable; 130 interrupted;
141 the reader of standard output has gone.
`up`, `host` and `runner`: 4 this machine is not ready (a port is taken, the data directory is in
use); 5 the host cannot be reached or joined. `kohakuriver ssh` ends with ssh's own code, 127 where
ssh is missing.

Examples:
  kohakuriver vps create --name web --ssh -m 2G    make a VPS that takes your SSH keys
  kohakuriver ssh web                              go there
  kohakuriver vps list                             see what runs";

/// Options of every client command, before or after the command's name.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct GlobalArgs {
    /// Host: a name, an address, or one of them as http:// or https://host:port [env:
    /// KOHAKURIVER_HOST].
    #[arg(short = 'H', long, global = true, value_name = "HOST", help_heading = "Global options")]
    pub host: Option<String>,
    /// Port of the host's API [env: KOHAKURIVER_PORT].
    #[arg(short = 'P', long, global = true, value_name = "PORT", help_heading = "Global options")]
    pub port: Option<u16>,
    /// Print the API's JSON instead of text.
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

/// The client commands.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum ClientCommand {
    /// Create, list and manage VPSes.
    #[command(subcommand)]
    Vps(vps::VpsCommand),
    /// Open a terminal in a VPS that survives lost connections.
    Connect(connect::ConnectArgs),
    /// Log in to a VPS with your own ssh.
    Ssh(ssh::SshArgs),
    /// Forward local ports to services in a VPS.
    Forward(forward::ForwardArgs),
    /// Run programs in a VPS, without SSH.
    #[command(subcommand)]
    Terminal(terminal::TerminalCommand),
    /// Log in, and manage accounts.
    #[command(subcommand)]
    Auth(auth::AuthCommand),
    /// List, approve and reject requests.
    #[command(subcommand)]
    Approval(approval::ApprovalCommand),
    /// Read and verify the audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Manage nodes.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// The host's part of the executable's `qemu` command.
    #[command(skip)]
    Qemu(QemuCommand),
    /// Show the state of the cluster.
    Status(status::StatusArgs),
    /// Check this machine and the host for problems and risks.
    Doctor(doctor::DoctorArgs),
    /// Show the versions of this program and of the host.
    Version(version::VersionArgs),
    /// Show the settings and their sources.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the completion script of a shell.
    Completion(completion::CompletionArgs),
    /// Forward one SSH connection, as ssh's ProxyCommand.
    #[command(hide = true)]
    SshProxy(ssh::proxy::ProxyArgs),
    /// Get a new certificate for one VPS before ssh connects.
    #[command(hide = true)]
    SshCert(ssh::certificate::CertificateArgs),
}

/// Runs one client command to its end. Returns the exit code of the process.
pub fn run(global: GlobalArgs, command: ClientCommand) -> ExitCode {
    let out = Output::new(global.json);
    match execute(&global, command, out) {
        Ok(()) => output_written(),
        Err(failure) => ended(&failure),
    }
}

/// Ends a process that has done its work: fails if its output was not written.
pub fn output_written() -> ExitCode {
    match stdout::finish() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ended(&failure),
    }
}

/// Parses the command line, or ends the process with help, the version or a usage error.
///
/// # Errors
/// There is nothing to run.
pub fn parse<P: clap::Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        if error.use_stderr() {
            error.exit()
        }
        match stdout::printed(|| error.print()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ended(&failure),
        }
    })
}

fn ended(failure: &CommandError) -> ExitCode {
    Output::new(false).failure(failure);
    ExitCode::from(failure.exit_code())
}

fn execute(global: &GlobalArgs, command: ClientCommand, out: Output) -> Result<(), CommandError> {
    // Needs neither settings nor network.
    if let ClientCommand::Completion(args) = &command {
        return completion::run(args, out);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::request(format!("cannot start: {error}")))?;
    let result = runtime.block_on(async {
        let context = Context::new(global, out)?;
        tokio::select! {
            biased;
            result = dispatch(&context, command) => result,
            // Nothing more of it would arrive; Drop puts terminal and files right.
            lost = stdout::failed() => Err(lost),
        }
    });
    // A read of the keyboard cannot be cancelled and must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn dispatch(context: &Context, command: ClientCommand) -> Result<(), CommandError> {
    match command {
        ClientCommand::Vps(command) => vps::run(context, command).await,
        ClientCommand::Ssh(args) => ssh::run(context, args).await,
        ClientCommand::Connect(args) => connect::run(context, args).await,
        ClientCommand::Forward(args) => forward::run(context, args).await,
        ClientCommand::Terminal(command) => terminal::run(context, command).await,
        ClientCommand::Auth(command) => auth::run(context, command).await,
        ClientCommand::Approval(command) => approval::run(context, command).await,
        ClientCommand::Audit(command) => audit::run(context, command).await,
        ClientCommand::Node(command) => node::run(context, command).await,
        ClientCommand::Qemu(command) => qemu::run(context, command).await,
        ClientCommand::Status(_) => status::run(context).await,
        ClientCommand::Doctor(args) => doctor::run(context, &args).await,
        ClientCommand::Version(_) => version::run(context).await,
        ClientCommand::Config(command) => config::run(context, &command),
        ClientCommand::Completion(args) => completion::run(&args, context.out),
        ClientCommand::SshProxy(args) => ssh::proxy::run(context, &args).await,
        ClientCommand::SshCert(args) => ssh::certificate::run(context, &args).await,
    }
}
