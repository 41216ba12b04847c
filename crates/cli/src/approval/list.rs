//! `kohakuriver approval list`

use jiff::Timestamp;
use kohakuriver_api::Task;

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone, age};
use crate::vps::{called, cores, memory};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver approval list
  kohakuriver approval list --json | jq -r '.[].task_id'")]
pub struct ListArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let tasks = context.api.pending().await?;
    if context.out.json {
        context.out.json(&tasks);
    } else if tasks.is_empty() {
        context.out.note("nothing waits for a decision");
    } else {
        grid(&tasks, Timestamp::now()).print(context.out);
    }
    Ok(())
}

fn grid(tasks: &[Task], now: Timestamp) -> Grid {
    let mut grid = Grid::new(&[
        ("ID", Fit::Whole),
        ("NAME", Fit::Cut),
        ("OWNER", Fit::Cut),
        ("BACKEND", Fit::Cut),
        ("NODE", Fit::Cut),
        ("CORES", Fit::Whole),
        ("MEMORY", Fit::Whole),
        ("GPUS", Fit::Whole),
        ("WAITS", Fit::Cut),
    ]);
    for task in tasks {
        let row = [
            task.task_id.clone(),
            called(task).to_owned(),
            task.owner_username.clone().unwrap_or_default(),
            task.vps_backend.clone(),
            task.requested_node.clone().unwrap_or_else(|| "any".to_owned()),
            cores(task),
            memory(task),
            gpus(task),
            task.submitted_at.as_deref().and_then(|time| age(time, now)).unwrap_or_default(),
        ];
        grid.row(row.map(|cell| (Tone::Plain, cell)).to_vec());
    }
    grid
}

/// Counts the GPUs of a request.
pub fn gpus(task: &Task) -> String {
    match task.gpu_count {
        Some(count) => count.to_string(),
        None => task.required_gpus.len().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_with_and_without_ids() {
        let named = Task { required_gpus: vec![0, 3], ..Task::default() };
        let any = Task { gpu_count: Some(4), ..Task::default() };
        assert_eq!((gpus(&named), gpus(&any)), ("2".to_owned(), "4".to_owned()));
        assert_eq!(gpus(&Task::default()), "0");
    }
}
