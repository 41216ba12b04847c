//! `kohakuriver node remove`

use clap_complete::ArgValueCandidates;
use kohakuriver_model::NodeName;

use super::status::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver node remove gpu-01
  kohakuriver node remove gpu-01 --force --yes     even if it still has VPSes")]
pub struct RemoveArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Remove the node even if it is online or has VPSes.
    #[arg(short, long)]
    force: bool,
}

pub async fn run(context: &Context, args: &RemoveArgs) -> Result<(), CommandError> {
    let name = args.node.as_str();
    let node = context.api.node(name).await.map_err(with_list_hint)?;
    let question = match node.vps_count {
        0 => format!("Remove node {name} ({})?", node.status),
        1 => format!("Remove node {name} ({}) with 1 VPS on it?", node.status),
        count => format!("Remove node {name} ({}) with {count} VPSes on it?", node.status),
    };
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was removed");
        return Ok(());
    }
    let answer = context.api.remove_node(name, args.force).await?;
    if context.out.json {
        context.out.json(&answer);
    } else {
        context.out.line(format!("node {name} is removed"));
    }
    let left = listed(&answer, "left_behind");
    if !left.is_empty() {
        context.out.note(format!(
            "note: these containers stay on the node's computer, where `docker rm -f` removes them: {}",
            left.join(" ")
        ));
    }
    let left = listed(&answer, "left_machines");
    if !left.is_empty() {
        context.out.note(format!(
            "note: these virtual machines keep running on the node's computer: {}",
            left.join(" ")
        ));
        context.out.hint("after it has joined again, `kohakuriver qemu cleanup` removes them");
    }
    Ok(())
}

/// Lists the instances that the host can no longer remove.
fn listed<'a>(answer: &'a serde_json::Value, key: &str) -> Vec<&'a str> {
    let names = answer.get(key).and_then(serde_json::Value::as_array);
    names.into_iter().flatten().filter_map(serde_json::Value::as_str).collect()
}
