//! `kohakuriver vps snapshot delete`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{Snapshot, Task};

use super::{Which, described};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::Progress;
use crate::vps::batch::{ErrorReporter, print_json};
use crate::vps::vocabulary::called;
use crate::wait;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps snapshot delete web clean              asks for confirmation
  kohakuriver vps snapshot delete web 1750000000 1750003600 --yes
  kohakuriver vps snapshot delete web --all")]
pub struct DeleteArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Tags or names of snapshots, or latest.
    #[arg(value_name = "WHICH", required_unless_present = "all", conflicts_with = "all")]
    which: Vec<Which>,
    /// Delete all snapshots of the VPS.
    #[arg(short, long)]
    all: bool,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(context: &Context, args: &DeleteArgs) -> Result<(), CommandError> {
    let (task, list) = super::of(context, &args.vps).await?;
    if args.all {
        return all(context, &task, list.snapshots.len(), args.yes).await;
    }
    // Resolved before the first deletion, because that changes the meaning of `latest`.
    let mut troubles = ErrorReporter::new(context);
    let mut found: Vec<&Snapshot> = Vec::new();
    for which in &args.which {
        match which.among(&list.snapshots, called(&task)) {
            Ok(snapshot) if found.iter().any(|old| old.tag == snapshot.tag) => {}
            Ok(snapshot) => found.push(snapshot),
            Err(failure) => troubles.add(failure)?,
        }
    }
    if !found.is_empty() && !args.yes {
        let now = Timestamp::now();
        let names: Vec<String> = found.iter().map(|snapshot| described(snapshot, now)).collect();
        let things = if found.len() == 1 { "snapshot" } else { "snapshots" };
        let question = format!("Delete {things} {} of VPS {}?", names.join(", "), called(&task));
        if !context.out.confirm(&question, "--yes")? {
            context.out.note("nothing was deleted");
            return Ok(());
        }
    }
    let mut results = Vec::new();
    for snapshot in found {
        let tag = &snapshot.tag;
        match working(context, &task, context.api.delete_snapshot(&task.task_id, tag)).await {
            Ok(answer) => {
                if !context.out.json {
                    context.out.line(format!("snapshot {tag} of VPS {} is deleted", called(&task)));
                }
                results.push(serde_json::to_value(&answer).unwrap_or_default());
            }
            Err(failure) => troubles.add(failure)?,
        }
    }
    if context.out.json {
        print_json(context, args.which.len(), results);
    }
    troubles.end()
}

async fn all(context: &Context, task: &Task, count: usize, yes: bool) -> Result<(), CommandError> {
    let name = called(task);
    let things = if count == 1 { "1 snapshot".to_owned() } else { format!("{count} snapshots") };
    let question = format!("Delete all {things} of VPS {name}?");
    if count > 0 && !yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was deleted");
        return Ok(());
    }
    let answer = working(context, task, context.api.delete_snapshots(&task.task_id)).await?;
    if context.out.json {
        context.out.json(&answer);
        return Ok(());
    }
    // Snapshots in use are retained, so the count may be lower; the host's message names them.
    context.out.line(format!("{} of {things} of VPS {name} deleted", answer.deleted_count));
    if answer.deleted_count < u64::try_from(count).unwrap_or(u64::MAX) {
        context.out.note(format!("note: {}", answer.message));
    }
    Ok(())
}

/// Displays progress while the request runs: removing the layers of a large disk takes a while.
async fn working<T>(
    context: &Context,
    task: &Task,
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    let name = called(task);
    let mut progress = Progress::new(context.out);
    progress.show(&format!("deleting snapshots of {name}"), None);
    wait::unless_interrupted(work, || {
        CommandError::interrupted("stopped waiting; the snapshot may still be deleted")
            .hint(format!("`kohakuriver vps snapshot list {name}` shows the remaining ones"))
    })
    .await
}
