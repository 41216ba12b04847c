//! `kohakuriver vps`: virtual private servers.

mod act;
mod create;
mod delete;
mod list;
mod restart;
mod ssh_key;
mod status;
mod stop;

use kohakuriver_api::Task;

pub use act::with_list_hint;
pub use list::has_ssh;

use crate::context::Context;
use crate::failure::Failure;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum VpsCommand {
    /// Create a VPS and wait until it runs
    Create(Box<create::CreateArgs>),
    /// List VPSes
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one VPS in detail
    #[command(visible_alias = "show")]
    Status(status::StatusArgs),
    /// Stop VPSes; their disks stay
    Stop(stop::StopArgs),
    /// Start stopped VPSes again, or restart running ones, with the same disk
    #[command(visible_alias = "start")]
    Restart(restart::RestartArgs),
    /// Delete VPSes with their disks
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

pub async fn run(context: &Context, command: VpsCommand) -> Result<(), Failure> {
    match command {
        VpsCommand::Create(args) => create::run(context, *args).await,
        VpsCommand::List(args) => list::run(context, &args).await,
        VpsCommand::Status(args) => status::run(context, &args).await,
        VpsCommand::Stop(args) => stop::run(context, &args).await,
        VpsCommand::Restart(args) => restart::run(context, &args).await,
        VpsCommand::Delete(args) => delete::run(context, &args).await,
    }
}

/// What people call a VPS: its name, or its id where it has none.
pub fn called(task: &Task) -> &str {
    task.name.as_deref().unwrap_or(&task.task_id)
}

/// The failure that a VPS in status `failed` reports about itself.
pub fn reported_failure(task: &Task) -> Failure {
    let reason = task.error_message.as_deref().unwrap_or("the node gave no reason");
    let state = match &task.transition {
        Some(transition) if task.status != "failed" => format!("is still {transition}"),
        _ => "failed".to_owned(),
    };
    let failure = Failure::request(format!("VPS {} {state}: {reason}", called(task)));
    match &task.error_hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
