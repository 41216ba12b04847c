//! The client commands alone, for this crate's tests.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use kohakuriver_cli::{ClientCommand, GlobalArgs};

#[derive(Debug, Parser)]
#[command(name = "kohakuriver", version, after_help = kohakuriver_cli::AFTER_HELP)]
struct Client {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: ClientCommand,
}

fn main() -> ExitCode {
    kohakuriver_cli::complete_if_asked(Client::command);
    let client = Client::parse();
    kohakuriver_cli::run(client.global, client.command)
}
