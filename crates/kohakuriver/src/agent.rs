//! `kohakuriver agent`: hidden, the process inside an instance.

use std::path::PathBuf;

use crate::exit::{Exit, FAILED};

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Where the runner put the configuration
    #[arg(long, default_value = "/.kohakuriver/etc")]
    #[arg(default_value_if("guest", "true", "/run/kohakuriver/etc"))]
    config_dir: PathBuf,
    /// Where to make the socket
    #[arg(long, default_value = "/.kohakuriver/run")]
    #[arg(default_value_if("guest", "true", "/run/kohakuriver/run"))]
    run_dir: PathBuf,
    /// Be the service of a virtual machine: settings come from its seed disk
    #[arg(long)]
    guest: bool,
    /// Serve SFTP on standard input and output instead
    #[arg(long)]
    sftp_server: bool,
    /// Serve requests for files there
    #[arg(long, conflicts_with = "sftp_server")]
    files_server: bool,
    /// Tell about changes to files there
    #[arg(long, conflicts_with_all = ["sftp_server", "files_server"])]
    watch_server: bool,
}

pub fn run(args: &AgentArgs) -> Result<(), Exit> {
    let result = if args.sftp_server {
        kohakuriver_agent::sftp_server()
    } else if args.files_server {
        kohakuriver_agent::files_server()
    } else if args.watch_server {
        kohakuriver_agent::watch_server()
    } else if args.guest {
        crate::logging::start();
        kohakuriver_agent::run_guest(&args.config_dir, &args.run_dir)
    } else {
        crate::logging::start();
        kohakuriver_agent::run(&args.config_dir, &args.run_dir)
    };
    result.map_err(|error| Exit::from_error(FAILED, &error))
}
