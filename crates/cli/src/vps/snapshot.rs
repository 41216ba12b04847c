//! `kohakuriver vps snapshot`: snapshots of a VPS's disk.

mod create;
mod delete;
mod list;
mod restore;
mod which;

use jiff::Timestamp;
use kohakuriver_api::{Snapshot, SnapshotList, Task};

pub use which::{LATEST, Which};

use super::vocabulary::{called, with_list_hint};
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::ago;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum SnapshotCommand {
    /// Create a snapshot of a VPS's disk.
    Create(create::CreateArgs),
    /// List the snapshots of a VPS, newest first.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Restore a VPS's disk from a snapshot and start the VPS.
    Restore(restore::RestoreArgs),
    /// Delete snapshots.
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
}

pub async fn run(context: &Context, command: SnapshotCommand) -> Result<(), CommandError> {
    match command {
        SnapshotCommand::Create(args) => create::run(context, &args).await,
        SnapshotCommand::List(args) => list::run(context, &args).await,
        SnapshotCommand::Restore(args) => restore::run(context, &args).await,
        SnapshotCommand::Delete(args) => delete::run(context, &args).await,
    }
}

/// Fetches a VPS and its snapshots.
async fn of(context: &Context, vps: &VpsRef) -> Result<(Task, SnapshotList), CommandError> {
    let task = context.api.task(vps.as_str()).await.map_err(with_list_hint)?;
    let list = context.api.snapshots(&task.task_id).await?;
    Ok((task, list))
}

/// Finds the snapshot and asks for confirmation, because data written to the disk since is lost.
/// Returns `None` if the user declines. The result holds the VPS and the tag, so that neither can
/// resolve differently later.
pub async fn agree_to_lose_disk(
    context: &Context,
    vps: &VpsRef,
    which: &Which,
    yes: bool,
) -> Result<Option<(VpsRef, String)>, CommandError> {
    let (task, list) = of(context, vps).await?;
    let snapshot = which.among(&list.snapshots, called(&task))?;
    let question = format!(
        "Restore the disk of VPS {} from snapshot {}? Data written to it since is lost.",
        called(&task),
        described(snapshot, Timestamp::now())
    );
    if !yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was changed");
        return Ok(None);
    }
    Ok(Some((VpsRef::of(&task), snapshot.tag.clone())))
}

/// Formats a snapshot as `1750000000 (clean, 2 hours ago)`.
fn described(snapshot: &Snapshot, now: Timestamp) -> String {
    let made = ago(&snapshot.created_at, now);
    match &snapshot.name {
        Some(name) => format!("{} ({name}, {made})", snapshot.tag),
        None => format!("{} ({made})", snapshot.tag),
    }
}
