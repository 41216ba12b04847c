//! `kohakuriver vps delete`

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{Message, Task};

use super::batch::{ErrorReporter, print_json};
use super::settle::node_away;
use super::vocabulary::{called, reported_failure, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::files;
use crate::keys;
use crate::reference::VpsRef;
use crate::wait::{self, End};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps delete web             asks for confirmation
  kohakuriver vps delete web db --yes    without confirmation
  kohakuriver vps delete web --force     even if it is running")]
pub struct DeleteArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: Vec<VpsRef>,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Also delete VPSes that are running.
    #[arg(short, long)]
    force: bool,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &DeleteArgs) -> Result<(), CommandError> {
    let mut troubles = ErrorReporter::new(context);
    let mut found: Vec<Task> = Vec::new();
    for reference in &args.vps {
        match context.api.task(reference.as_str()).await.map_err(with_list_hint) {
            Ok(task) if found.iter().any(|old| old.task_id == task.task_id) => {}
            Ok(task) => found.push(task),
            Err(failure) => troubles.add(failure)?,
        }
    }
    if !found.is_empty() && !args.yes && !context.out.confirm(&question(&found), "--yes")? {
        context.out.note("nothing was deleted");
        return Ok(());
    }
    // Sends all requests first, so that the nodes work in parallel.
    let mut asked: Vec<(&Task, Message)> = Vec::new();
    for task in &found {
        match context.api.delete_vps(&task.task_id, args.force).await {
            Ok(message) => asked.push((task, message)),
            Err(failure) => troubles.add(failure.or_hint(|| {
                let name = called(task);
                format!("`kohakuriver vps stop {name}` first, or delete it with --force")
            }))?,
        }
    }
    let mut results = Vec::new();
    for (task, message) in asked {
        if !args.no_wait
            && let Err(failure) = settle(context, task).await
        {
            troubles.add(failure)?;
            continue;
        }
        if !context.out.json {
            let state = if args.no_wait { "is being deleted" } else { "is deleted" };
            context.out.line(format!("VPS {} {state}", called(task)));
        }
        name_the_useless_key(context, &task.task_id);
        results.push(serde_json::to_value(&message).unwrap_or_default());
    }
    if context.out.json {
        print_json(context, args.vps.len(), results);
    }
    troubles.end()
}

fn question(found: &[Task]) -> String {
    let names: Vec<String> = found
        .iter()
        .map(|task| match &task.name {
            Some(name) => format!("{name} ({}, {})", task.task_id, task.status),
            None => format!("{} ({})", task.task_id, task.status),
        })
        .collect();
    let disks = if found.len() == 1 { "its disk" } else { "their disks" };
    format!("Delete VPS {} with {disks}?", names.join(", "))
}

/// Waits until the VPS is removed.
async fn settle(context: &Context, task: &Task) -> Result<(), CommandError> {
    let (id, name) = (task.task_id.as_str(), called(task));
    let step = format!("deleting {name}");
    let stuck =
        |task: &Task| task.status == "lost" || task.transition.is_none() || wait::is_blocked(task);
    let end = wait::unless_interrupted(wait::until(context, id, &step, stuck), || {
        CommandError::interrupted(format!("stopped waiting; VPS {name} is being deleted"))
            .hint(format!("`kohakuriver vps status {id}` shows whether it was removed"))
    });
    let task = match end.await {
        Ok(End::Gone) => return Ok(()),
        Ok(End::Met(task)) => task,
        Err(failure) if failure.kind == Kind::NotFound => return Ok(()),
        Err(failure) => return Err(failure),
    };
    if task.status == "lost" {
        return Err(node_away(&task, name, "deleted"));
    }
    if wait::is_blocked(&task) {
        let hint = || format!("`kohakuriver vps status {id}` shows whether it was removed");
        return Err(reported_failure(&task).or_hint(hint));
    }
    let reason = task.error_message.as_deref().unwrap_or("the host gave no reason");
    Err(CommandError::request(format!("VPS {name} was not deleted: {reason}"))
        .hint(format!("`kohakuriver vps status {id}` shows details")))
}

/// Prints the path of the private key that is now unused; it is the user's file, so it is not removed.
fn name_the_useless_key(context: &Context, id: &str) {
    if let Ok(home) = files::home() {
        let key = keys::made_for(&home.join(".ssh"), id);
        if key.exists() {
            context.out.note(format!("note: the key {} is no longer of use", key.display()));
        }
    }
}
