//! The client commands alone, for this crate's tests.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kohakuriver_cli::{ClientCommand, GlobalArgs, QemuCommand};
use kohakuriver_model::NodeName;

#[derive(Debug, Parser)]
#[command(name = "kohakuriver", version, after_help = kohakuriver_cli::AFTER_HELP)]
struct Client {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(ClientCommand),
    #[command(subcommand)]
    Qemu(QemuCommand),
    /// The executable's `qemu image list --node`
    Images { node: NodeName },
}

fn main() -> ExitCode {
    kohakuriver_cli::complete_if_asked(Client::command);
    let client: Client = match kohakuriver_cli::parse() {
        Ok(client) => client,
        Err(ended) => return ended,
    };
    let command = match client.command {
        Command::Client(command) => command,
        Command::Qemu(command) => ClientCommand::Qemu(command),
        Command::Images { node } => ClientCommand::Qemu(QemuCommand::Images(node)),
    };
    kohakuriver_cli::run(client.global, command)
}
