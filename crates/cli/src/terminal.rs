//! `kohakuriver terminal`: programs and consoles in a VPS, without SSH.

mod attach;
mod carry;
mod exec;

use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum TerminalCommand {
    /// Open a shell through the container engine, or a virtual machine's console, even if the
    /// VPS's agent does not respond.
    Attach(attach::AttachArgs),
    /// Run a program in a VPS with its exact arguments, streams and exit code.
    Exec(exec::ExecArgs),
}

pub async fn run(context: &Context, command: TerminalCommand) -> Result<(), CommandError> {
    match command {
        TerminalCommand::Attach(args) => attach::run(context, args).await,
        TerminalCommand::Exec(args) => exec::run(context, args).await,
    }
}
