//! `kohakuriver version`

use std::time::Duration;

use crate::context::Context;
use crate::error::CommandError;
use crate::ui::Panel;

/// The timeout: the versions are printed at once, also where the host is off.
const HOST_LIMIT: Duration = Duration::from_secs(2);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver version
  kohakuriver version --json")]
pub struct VersionArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let client = env!("CARGO_PKG_VERSION");
    let health = tokio::time::timeout(HOST_LIMIT, context.api.health()).await;
    let host = health.ok().and_then(Result::ok).map(|health| health.version);
    if context.out.json {
        context.out.json(&serde_json::json!({ "client": client, "host": host }));
        return Ok(());
    }
    let mut panel = Panel::default();
    let place = context.api.place();
    panel.add("client", client).add(
        "host",
        match host {
            Some(version) => format!("{version} ({place})"),
            None => format!("not reachable ({place})"),
        },
    );
    panel.print(context.out);
    Ok(())
}
