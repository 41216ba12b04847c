//! The one executable: parses which role to play, and plays it.

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

/// Long-running machines one can SSH into, on your own Linux hosts
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
    /// Run host and runner on this machine, ready to use
    Up(up::UpArgs),
    /// Run the control plane: API, SSH gateway, runners' link
    Host(host::HostArgs),
    /// Run this machine as a node
    Runner(runner::RunnerArgs),
    /// Prepare this machine for virtual machines
    #[command(subcommand)]
    Qemu(QemuCommand),
    /// The process inside an instance
    #[command(hide = true)]
    Agent(agent::AgentArgs),
    #[command(flatten)]
    Client(ClientCommand),
}

fn main() -> ExitCode {
    // Not for people, and as early as can be: this process is about to become a QEMU.
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
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
