//! `kohakuriver qemu instances`

use kohakuriver_api::{VmInstance, VmInstances, VmNode};
use kohakuriver_model::Memory;

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Panel, Tone, status_tone};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
DISK USAGE is the size of a virtual machine's own files, without shared base images and layers. An
orphaned one belongs to no VPS: `kohakuriver qemu cleanup` removes it.

Examples:
  kohakuriver qemu instances
  kohakuriver qemu instances --json | jq '.summary'")]
pub struct InstancesArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let out = context.out;
    let answer = context.api.vm_instances().await?;
    if out.json {
        out.json(&answer);
        return Ok(());
    }
    panel(&answer).print(out);
    for node in &answer.nodes {
        if let Some(error) = &node.error {
            out.note(format!("note: node {} could not be queried: {error}", node.hostname));
        }
    }
    if answer.summary.total_instances == 0 {
        return Ok(());
    }
    out.line("");
    let mut grid = Grid::new(&[
        ("TASK ID", Fit::Whole),
        ("NODE", Fit::Cut),
        ("DISK USAGE", Fit::Whole),
        ("QEMU", Fit::Whole),
        ("DB STATUS", Fit::Whole),
        ("NAME", Fit::Cut),
        ("FILES", Fit::Cut),
    ]);
    for node in &answer.nodes {
        for instance in node.instances.iter().flatten() {
            grid.row(row(node, instance));
        }
    }
    grid.print(out);
    if answer.summary.orphaned_count > 0 {
        out.hint("`kohakuriver qemu cleanup TASK_ID --node NODE` removes an orphaned one");
    }
    Ok(())
}

fn panel(answer: &VmInstances) -> Panel {
    let summary = &answer.summary;
    let mut panel = Panel::default();
    panel.add("machines", summary.total_instances.to_string());
    let tone = if summary.orphaned_count > 0 { Tone::Busy } else { Tone::Plain };
    panel.tinted("orphaned", tone, summary.orphaned_count.to_string());
    panel.add("disk usage", Memory::from_bytes(summary.total_disk_usage_bytes).to_string());
    panel
}

fn row(node: &VmNode, instance: &VmInstance) -> Vec<(Tone, String)> {
    let plain = |text: String| (Tone::Plain, text);
    let qemu = match (instance.qemu_running, instance.qemu_pid) {
        (true, Some(pid)) => format!("pid {pid}"),
        (true, None) => "yes".to_owned(),
        (false, _) => "no".to_owned(),
    };
    let tone = match instance.db_status.as_str() {
        "orphaned" => Tone::Busy,
        status => status_tone(status),
    };
    let name = instance.task_metadata.as_ref().and_then(|task| task.name.clone());
    vec![
        plain(instance.task_id.clone()),
        plain(node.hostname.clone()),
        plain(Memory::from_bytes(instance.disk_usage_bytes).to_string()),
        plain(qemu),
        (tone, instance.db_status.clone()),
        plain(name.unwrap_or_default()),
        plain(instance.files.join(" ")),
    ]
}
