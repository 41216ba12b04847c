//! `kohakuriver vps list`

use jiff::Timestamp;
use kohakuriver_api::Task;

use super::shares::remind;
use super::vocabulary::{called, cores, has_ssh, memory};
use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone, ago, status_tone};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps list
  kohakuriver vps list --all
  kohakuriver vps list --json | jq -r '.[].task_id'")]
pub struct ListArgs {
    /// Include stopped and failed VPSes.
    #[arg(short, long)]
    all: bool,
}

pub async fn run(context: &Context, args: &ListArgs) -> Result<(), CommandError> {
    let tasks =
        if args.all { context.api.vps_all().await? } else { context.api.vps_active().await? };
    if context.out.json {
        context.out.json(&tasks);
        return Ok(());
    }
    if tasks.is_empty() {
        if args.all {
            context.out.note("no VPS yet");
            context.out.hint("`kohakuriver vps create --ssh` creates one");
        } else {
            context.out.note("no VPS is running");
            context.out.hint(
                "`kohakuriver vps list -a` also shows stopped ones, `kohakuriver vps create --ssh` creates one",
            );
        }
        remind(context).await;
        return Ok(());
    }
    let owners = has_owners(&tasks);
    let mut columns = vec![("ID", Fit::Whole), ("NAME", Fit::Cut)];
    columns.extend(owners.then_some(("OWNER", Fit::Cut)));
    columns.extend([
        ("STATUS", Fit::Whole),
        ("NODE", Fit::Cut),
        // The less common of the two values fits however narrow the column gets.
        ("BACKEND", Fit::Cut),
        ("SSH", Fit::Whole),
        ("CORES", Fit::Whole),
        ("MEMORY", Fit::Whole),
        ("STARTED", Fit::Whole),
    ]);
    let mut grid = Grid::new(&columns);
    let now = Timestamp::now();
    for task in &tasks {
        grid.row(row(task, owners, now));
    }
    grid.print(context.out);
    remind(context).await;
    Ok(())
}

/// Returns whether the VPSes have different owners.
fn has_owners(tasks: &[Task]) -> bool {
    tasks.iter().any(|task| task.owner_username != tasks[0].owner_username)
}

fn row(task: &Task, owners: bool, now: Timestamp) -> Vec<(Tone, String)> {
    let plain = |text: String| (Tone::Plain, text);
    let status = task.transition.as_deref().unwrap_or(&task.status);
    let tone = if task.transition.is_some() { Tone::Busy } else { status_tone(status) };
    let node = task.assigned_node.as_ref().or(task.requested_node.as_ref());
    let name = task.name.as_ref().map(|_| called(task).to_owned());
    let mut cells = vec![plain(task.task_id.clone()), plain(name.unwrap_or_default())];
    cells.extend(owners.then(|| plain(task.owner_username.clone().unwrap_or_default())));
    cells.extend([
        (tone, status.to_owned()),
        plain(node.cloned().unwrap_or_default()),
        plain(task.vps_backend.clone()),
        plain(if has_ssh(task) { "yes" } else { "no" }.to_owned()),
        plain(cores(task)),
        plain(memory(task)),
        plain(task.started_at.as_deref().map(|time| ago(time, now)).unwrap_or_default()),
    ]);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_column_appears_only_for_several_owners() {
        let of = |owner: &str| Task { owner_username: Some(owner.to_owned()), ..Task::default() };
        assert!(!has_owners(&[]));
        assert!(!has_owners(&[of("ann"), of("ann")]));
        assert!(has_owners(&[of("ann"), Task::default()]));
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(row(&of("ann"), true, now)[2].1, "ann");
        assert_eq!(row(&of("ann"), true, now).len(), row(&of("ann"), false, now).len() + 1);
    }
}
