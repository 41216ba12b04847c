//! `kohakuriver node drain` and `undrain`

use std::time::{Duration, Instant};

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{Node, Task};
use kohakuriver_model::NodeName;

use super::status::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui::Progress;
use crate::vps::vocabulary::called;
use crate::wait::{self, RetryBudget};

/// Interval between polls: the API does not notify when a node becomes empty.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A drained node gets no new VPSes. Its existing ones stay, and can be stopped and started.

Examples:
  kohakuriver node drain gpu-01
  kohakuriver node drain gpu-01 --wait && ssh gpu-01 reboot")]
pub struct DrainArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
    /// Wait until every VPS on the node is stopped.
    #[arg(short, long)]
    wait: bool,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver node undrain gpu-01")]
pub struct UndrainArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
}

pub async fn drain(context: &Context, args: &DrainArgs) -> Result<(), CommandError> {
    let name = args.node.as_str();
    let mut node = context.api.drain_node(name).await.map_err(with_list_hint)?;
    if !context.out.json {
        context.out.line(format!("node {name} is drained: it takes no new VPSes"));
        context.out.note(staying(&node));
    }
    if args.wait {
        wait::unless_interrupted(until_empty(context, name), || {
            CommandError::interrupted(format!("stopped waiting; node {name} stays drained"))
                .hint(format!("`kohakuriver node undrain {name}` allows VPSes on it again"))
        })
        .await?;
        if context.out.json {
            node = context.api.node(name).await?;
        } else {
            context.out.line(format!("no VPS is up on node {name}"));
        }
    }
    if context.out.json {
        context.out.json(&node);
    }
    Ok(())
}

pub async fn undrain(context: &Context, args: &UndrainArgs) -> Result<(), CommandError> {
    let name = args.node.as_str();
    let node = context.api.undrain_node(name).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&node);
    } else {
        context.out.line(format!("node {name} takes new VPSes again"));
    }
    Ok(())
}

fn staying(node: &Node) -> String {
    match node.vps_count {
        0 => "no VPS is on it".to_owned(),
        1 => "1 VPS stays on it".to_owned(),
        count => format!("{count} VPSes stay on it"),
    }
}

async fn until_empty(context: &Context, name: &str) -> Result<(), CommandError> {
    let mut progress = Progress::new(context.out);
    let mut retries = RetryBudget::default();
    loop {
        let asked = Instant::now();
        match context.api.vps_active().await {
            Ok(tasks) => {
                retries = RetryBudget::default();
                let up = up_on(&tasks, name);
                if up.is_empty() {
                    return Ok(());
                }
                progress.show(
                    &format!("waiting until these VPSes are stopped: {}", up.join(" ")),
                    None,
                );
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(failure) => retries.wait(failure, asked, &mut progress).await?,
        }
    }
}

/// Returns the VPSes that run on the node, may run there, or are about to.
fn up_on<'a>(tasks: &'a [Task], node: &str) -> Vec<&'a str> {
    let there = |task: &&Task| task.assigned_node.as_deref() == Some(node);
    tasks.iter().filter(there).map(called).collect()
}
