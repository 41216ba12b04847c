//! `kohakuriver vps`: virtual private servers.

mod act;
mod assign;
mod cp;
mod create;
mod created;
mod delete;
mod events;
mod give;
mod keys;
mod kill;
mod list;
mod parse;
mod pause;
mod restart;
mod resume;
mod settle;
mod share;
mod shares;
mod snapshot;
mod ssh_key;
mod status;
mod stop;
mod update;

use kohakuriver_api::Task;
use kohakuriver_model::BackendKind;

pub use act::{ErrorReporter, print_json};
pub use list::{cores, has_ssh, memory};
pub use parse::label;
pub use status::show;

use crate::context::Context;
use crate::error::{CommandError, Kind};

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
    /// End VPSes at once, without asking their programs
    Kill(kill::KillArgs),
    /// Freeze all processes of VPSes
    Pause(pause::PauseArgs),
    /// Let paused VPSes go on
    Resume(resume::ResumeArgs),
    /// Start stopped VPSes again, or restart running ones, with the same disk
    #[command(visible_alias = "start")]
    Restart(restart::RestartArgs),
    /// Change the limits and habits of a VPS
    Update(update::UpdateArgs),
    /// Make, list, restore and delete snapshots of a VPS's disk
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(snapshot::SnapshotCommand),
    /// List, add and remove the SSH keys that may log in
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Let others see, use or manage a VPS
    Share(share::ShareArgs),
    /// Revoke a share; open sessions are closed within seconds
    Unshare(share::UnshareArgs),
    /// List, take and decline what others share with you
    Shares(shares::SharesArgs),
    /// List, take and decline what others offer to give you
    Offers(shares::OffersArgs),
    /// Let people use a VPS: `vps share` for several
    Assign(assign::AssignArgs),
    /// Offer a VPS to another account, which becomes its owner by taking it
    Give(give::GiveArgs),
    /// Copy files to, from and between VPSes
    #[command(visible_alias = "copy")]
    Cp(cp::CopyArgs),
    /// Show what happened to a VPS, and who asked for it
    Events(events::EventsArgs),
    /// Delete VPSes with their disks
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

pub async fn run(context: &Context, command: VpsCommand) -> Result<(), CommandError> {
    match command {
        VpsCommand::Create(args) => create::run(context, *args).await,
        VpsCommand::List(args) => list::run(context, &args).await,
        VpsCommand::Status(args) => status::run(context, &args).await,
        VpsCommand::Stop(args) => stop::run(context, &args).await,
        VpsCommand::Kill(args) => kill::run(context, &args).await,
        VpsCommand::Pause(args) => pause::run(context, &args).await,
        VpsCommand::Resume(args) => resume::run(context, &args).await,
        VpsCommand::Update(args) => update::run(context, &args).await,
        VpsCommand::Snapshot(command) => snapshot::run(context, command).await,
        VpsCommand::Keys(command) => keys::run(context, command).await,
        VpsCommand::Share(args) => share::run(context, &args).await,
        VpsCommand::Unshare(args) => share::unshare(context, &args).await,
        VpsCommand::Shares(args) => shares::run(context, &args).await,
        VpsCommand::Offers(args) => shares::offers(context, &args).await,
        VpsCommand::Assign(args) => assign::run(context, &args).await,
        VpsCommand::Give(args) => give::run(context, &args).await,
        VpsCommand::Cp(args) => cp::run(context, &args).await,
        VpsCommand::Events(args) => events::run(context, &args).await,
        VpsCommand::Restart(args) => restart::run(context, &args).await,
        VpsCommand::Delete(args) => delete::run(context, &args).await,
    }
}

/// What the caller calls a VPS: its name where it is theirs, `NAME.OWNER` where it is another's,
/// its id where it has no name. Commands take all of them.
pub fn called(task: &Task) -> &str {
    if !task.reference.is_empty() {
        return &task.reference;
    }
    task.name.as_deref().unwrap_or(&task.task_id)
}

/// Whether it is a virtual machine.
pub fn is_machine(task: &Task) -> bool {
    task.vps_backend == BackendKind::Qemu.word()
}

/// Every "there is no such VPS" ends with where to look.
pub fn with_list_hint(failure: CommandError) -> CommandError {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.or_hint(|| "`kohakuriver vps list -a` shows all VPSes".to_owned())
}

/// The failure that a VPS in status `failed` reports about itself.
pub fn reported_failure(task: &Task) -> CommandError {
    let reason = task.error_message.as_deref().unwrap_or("the node gave no reason");
    let state = match &task.transition {
        Some(transition) if task.status != "failed" => format!("is still {transition}"),
        _ => "failed".to_owned(),
    };
    let failure = CommandError::request(format!("VPS {} {state}: {reason}", called(task)));
    match &task.error_hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
