//! The executable: parses the command line and runs the chosen role.

mod agent;
mod auth;
mod exit;
mod findings;
mod history;
mod host;
mod logging;
mod paths;
mod qemu;
#[cfg(test)]
mod reference;
mod runner;
mod signals;
mod tls;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use kohakuriver_cli::{ClientCommand, GlobalArgs};
use kohakuriver_vm::launch;

use crate::exit::{Exit, FAILED};
use crate::qemu::QemuCommand;

/// Self-hosted virtual private servers on your own Linux computers.
#[derive(Debug, Parser)]
#[command(name = "kohakuriver", version, after_help = kohakuriver_cli::AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run host and runner on this computer.
    Up(up::UpArgs),
    /// Run the control plane: API, SSH gateway and link to the runners.
    Host(host::HostArgs),
    /// Run this computer as a node.
    Runner(runner::RunnerArgs),
    /// Manage virtual machines and their base images.
    #[command(subcommand)]
    Qemu(QemuCommand),
    /// Run the process inside an instance.
    #[command(hide = true)]
    Agent(agent::AgentArgs),
    #[command(flatten)]
    Client(ClientCommand),
}

fn main() -> ExitCode {
    // As early as possible and not part of the command line: QEMU replaces this process.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|role| role == launch::ROLE) {
        let Err(error) = launch::run(&words[1..]);
        return Exit::from_error(FAILED, &error).report();
    }
    kohakuriver_cli::complete_if_asked(Cli::command);
    let Cli { global, command } = match kohakuriver_cli::parse() {
        Ok(cli) => cli,
        Err(ended) => return ended,
    };
    let result = match command {
        Command::Client(command) => return kohakuriver_cli::run(global, command),
        Command::Up(args) => up::run(args, &global),
        Command::Host(args) => host::run(args, &global),
        Command::Runner(args) => runner::run(args),
        Command::Qemu(command) => match command.part() {
            qemu::Part::Host(command) => {
                return kohakuriver_cli::run(global, ClientCommand::Qemu(command));
            }
            qemu::Part::Check(args) => qemu::check::run(&args, &global),
            qemu::Part::Here(command) => qemu::image::run(command, &global),
        },
        Command::Agent(args) => agent::run(&args),
    };
    match result {
        Ok(()) => kohakuriver_cli::output_written(),
        Err(exit) => exit.report(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
