//! `kohakuriver status`

use crate::context::Context;
use crate::error::CommandError;
use crate::node;
use crate::ui::Panel;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver status
  kohakuriver --host gpu-01 status --json")]
pub struct StatusArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let health = context.api.health().await?;
    if context.out.json {
        context.out.json(&health);
        return Ok(());
    }
    let nodes = context.api.nodes().await?;
    let mut panel = Panel::default();
    panel
        .add("host", format!("{} (version {})", context.api.place(), health.version))
        .add("nodes", format!("{} online of {}", health.nodes_online, health.nodes_total))
        .add("vps", format!("{} running", health.vps_running));
    panel.print(context.out);
    if nodes.is_empty() {
        context
            .out
            .hint("`kohakuriver node token create` creates a token for a computer to join with");
        return Ok(());
    }
    context.out.line("");
    node::grid(&nodes).print(context.out);
    Ok(())
}
