//! `kohakuriver agent`: hidden, the process inside an instance.

use std::path::PathBuf;

use crate::exit::{Exit, FAILED};

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Directory of the runner's configuration files.
    #[arg(long, default_value = "/.kohakuriver/etc")]
    #[arg(default_value_if("guest", "true", "/run/kohakuriver/etc"))]
    config_dir: PathBuf,
    /// Directory for the socket.
    #[arg(long, default_value = "/.kohakuriver/run")]
    #[arg(default_value_if("guest", "true", "/run/kohakuriver/run"))]
    run_dir: PathBuf,
    /// Run as a virtual machine's service, with settings from its seed disk.
    #[arg(long)]
    guest: bool,
    /// Serve SFTP on standard input and output.
    #[arg(long)]
    sftp_server: bool,
    /// Serve the files protocol on standard input and output.
    #[arg(long, conflicts_with = "sftp_server")]
    files_server: bool,
    /// Report file changes on standard input and output.
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
