//! `kohakuriver agent`: hidden, the process inside an instance.

use std::path::PathBuf;

use crate::exit::{Exit, FAILED};

#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Where the runner put the configuration
    #[arg(long, default_value = "/.kohakuriver/etc")]
    config_dir: PathBuf,
    /// Where to make the socket
    #[arg(long, default_value = "/.kohakuriver/run")]
    run_dir: PathBuf,
    /// Serve SFTP on standard input and output instead
    #[arg(long)]
    sftp_server: bool,
}

pub fn run(args: &AgentArgs) -> Result<(), Exit> {
    let result = if args.sftp_server {
        kohakuriver_agent::sftp_server()
    } else {
        crate::logging::start();
        kohakuriver_agent::run(&args.config_dir, &args.run_dir)
    };
    result.map_err(|error| Exit::from_error(FAILED, &error))
}
