//! `kohakuriver node list`

use kohakuriver_api::Node;
use kohakuriver_model::Memory;

use super::status::labels;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone, status_tone};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver node list
  kohakuriver node list --json | jq -r '.[].hostname'")]
pub struct ListArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let nodes = context.api.nodes().await?;
    if context.out.json {
        context.out.json(&nodes);
        return Ok(());
    }
    if nodes.is_empty() {
        context.out.note("no node has joined yet");
        context
            .out
            .hint("`kohakuriver node token create` creates a token for a computer to join with");
        return Ok(());
    }
    grid(&nodes).print(context.out);
    Ok(())
}

pub fn grid(nodes: &[Node]) -> Grid {
    let mut grid = Grid::new(&[
        ("NODE", Fit::Cut),
        ("STATUS", Fit::Whole),
        ("VPS", Fit::Whole),
        ("CORES", Fit::Whole),
        ("MEMORY", Fit::Whole),
        ("GPUS", Fit::Whole),
        ("DOCKER", Fit::Cut),
        ("VMS", Fit::Cut),
        ("VERSION", Fit::Cut),
        ("LABELS", Fit::Cut),
    ]);
    for node in nodes {
        let plain = |text: String| (Tone::Plain, text);
        let docker = match (&node.docker_error, &node.docker_version) {
            (Some(error), _) => (Tone::Bad, error.clone()),
            (None, version) => plain(version.clone().unwrap_or_default()),
        };
        grid.row(vec![
            plain(node.hostname.clone()),
            status(node),
            plain(node.vps_count.to_string()),
            plain(cores(node)),
            plain(memory(node.memory_used_bytes, node.memory_total_bytes)),
            gpus(node),
            docker,
            machines(node),
            plain(node.runner_version.clone().unwrap_or_default()),
            plain(labels(node)),
        ]);
    }
    grid
}

pub fn memory(used: u64, total: u64) -> String {
    format!("{}/{}", Memory::from_bytes(used), Memory::from_bytes(total))
}

/// Formats the node's status, and whether it is drained.
pub fn status(node: &Node) -> (Tone, String) {
    match node.drained {
        true if node.status == "online" => (Tone::Busy, format!("{}, drained", node.status)),
        true => (status_tone(&node.status), format!("{}, drained", node.status)),
        false => (status_tone(&node.status), node.status.clone()),
    }
}

/// Formats allocated cores. Adds the number of VPSes without a limit, which can use all cores.
fn cores(node: &Node) -> String {
    let promised = format!("{}/{}", node.cores_in_use, node.total_cores);
    match node.vps_without_core_limit {
        0 => promised,
        count => format!("{promised} +{count} unlimited"),
    }
}

/// Formats allocated and total GPUs, and marks GPUs that containers cannot use.
fn gpus(node: &Node) -> (Tone, String) {
    if node.gpu_info.is_empty() {
        return (Tone::Plain, "0".to_owned());
    }
    let taken = node.gpu_info.iter().filter(|gpu| gpu.taken).count();
    let text = format!("{taken}/{}", node.gpu_info.len());
    if node.gpu_runtime { (Tone::Plain, text) } else { (Tone::Bad, format!("{text} unusable")) }
}

/// Formats the node's support for virtual machines.
fn machines(node: &Node) -> (Tone, String) {
    match (&node.vm_accel, &node.vm_warning) {
        (None, _) => (Tone::Quiet, "no".to_owned()),
        (Some(accel), None) => (Tone::Plain, accel.clone()),
        (Some(accel), Some(_)) => (Tone::Busy, accel.clone()),
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_api::GpuInfo;

    use super::*;

    #[test]
    fn list_marks_unusable_resources_of_a_node() {
        let node = Node {
            status: "online".to_owned(),
            drained: true,
            cores_in_use: 3,
            total_cores: 8,
            vps_without_core_limit: 2,
            gpu_info: vec![GpuInfo { taken: true, ..GpuInfo::default() }, GpuInfo::default()],
            ..Node::default()
        };
        assert_eq!(status(&node), (Tone::Busy, "online, drained".to_owned()));
        assert_eq!(cores(&node), "3/8 +2 unlimited");
        assert_eq!(gpus(&node), (Tone::Bad, "1/2 unusable".to_owned()));
        assert_eq!(machines(&node), (Tone::Quiet, "no".to_owned()));
        let slow = Node {
            vm_accel: Some("tcg".to_owned()),
            vm_warning: Some("emulated".to_owned()),
            ..node.clone()
        };
        assert_eq!(machines(&slow), (Tone::Busy, "tcg".to_owned()));
        let plain = Node { vps_without_core_limit: 0, gpu_runtime: true, drained: false, ..node };
        assert_eq!(status(&plain), (Tone::Good, "online".to_owned()));
        assert_eq!(cores(&plain), "3/8");
        assert_eq!(gpus(&plain), (Tone::Plain, "1/2".to_owned()));
    }
}
