//! `kohakuriver node list`

use kohakuriver_api::Node;
use kohakuriver_model::Memory;

use crate::context::Context;
use crate::failure::Failure;
use crate::ui::{Fit, Grid, Tone, status_tone};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver node list
  kohakuriver node list --json | jq -r '.[].hostname'")]
pub struct ListArgs {}

pub async fn run(context: &Context) -> Result<(), Failure> {
    let nodes = context.api.nodes().await?;
    if context.out.json {
        context.out.json(&nodes);
        return Ok(());
    }
    if nodes.is_empty() {
        context.out.note("no node has joined yet");
        context
            .out
            .hint("`kohakuriver node token create` makes a token for a machine to join with");
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
    ]);
    for node in nodes {
        let plain = |text: String| (Tone::Plain, text);
        let docker = match (&node.docker_error, &node.docker_version) {
            (Some(error), _) => (Tone::Bad, error.clone()),
            (None, version) => plain(version.clone().unwrap_or_default()),
        };
        grid.row(vec![
            plain(node.hostname.clone()),
            (status_tone(&node.status), node.status.clone()),
            plain(node.vps_count.to_string()),
            plain(format!("{}/{}", node.cores_in_use, node.total_cores)),
            plain(memory(node.memory_used_bytes, node.memory_total_bytes)),
            plain(node.gpu_info.len().to_string()),
            docker,
        ]);
    }
    grid
}

pub fn memory(used: u64, total: u64) -> String {
    format!("{}/{}", Memory::from_bytes(used), Memory::from_bytes(total))
}
