//! `kohakuriver vps`: virtual private servers.

mod act;
mod assign;
mod batch;
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
pub mod vocabulary;

pub use batch::{ErrorReporter, print_json};
pub use status::show;
pub use vocabulary::{called, cores, memory};

use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum VpsCommand {
    /// Create a VPS and wait until it runs.
    Create(Box<create::CreateArgs>),
    /// List VPSes.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one VPS in detail.
    #[command(visible_alias = "show")]
    Status(status::StatusArgs),
    /// Stop VPSes; their disks are kept.
    Stop(stop::StopArgs),
    /// Kill VPSes at once, without a graceful shutdown.
    Kill(kill::KillArgs),
    /// Freeze all processes of VPSes.
    Pause(pause::PauseArgs),
    /// Resume paused VPSes.
    Resume(resume::ResumeArgs),
    /// Restart running VPSes, or start stopped ones, with the same disk.
    #[command(visible_alias = "start")]
    Restart(restart::RestartArgs),
    /// Change a VPS's limits and policies.
    Update(update::UpdateArgs),
    /// Create, list, restore and delete snapshots of a VPS's disk.
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(snapshot::SnapshotCommand),
    /// List, add and remove the SSH keys that can log in to a VPS.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Share a VPS with accounts or groups, to view, use or manage it.
    Share(share::ShareArgs),
    /// Revoke a share; open sessions are closed within seconds.
    Unshare(share::UnshareArgs),
    /// List, take and decline VPSes shared with you.
    Shares(shares::SharesArgs),
    /// List, take and decline VPSes offered to you.
    Offers(shares::OffersArgs),
    /// Share a VPS with several accounts at level use.
    Assign(assign::AssignArgs),
    /// Offer ownership of a VPS to another account.
    Give(give::GiveArgs),
    /// Copy files to, from and between VPSes.
    #[command(visible_alias = "copy")]
    Cp(cp::CopyArgs),
    /// Show a VPS's events and the account that caused each.
    Events(events::EventsArgs),
    /// Delete VPSes with their disks.
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
