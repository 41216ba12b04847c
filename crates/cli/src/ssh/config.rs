//! `kohakuriver ssh config`

use std::path::PathBuf;

use super::certificate;
use super::route::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::files;
use crate::vps;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver ssh config --output ~/.ssh/kohakuriver.conf
  scp data.tar web:/root/     after `Include kohakuriver.conf` in ~/.ssh/config")]
pub struct ConfigArgs {
    /// File to write instead of standard output; replaced as a whole
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
}

pub async fn run(context: &Context, args: &ConfigArgs) -> Result<(), Failure> {
    let tasks = context.api.vps_active().await?;
    let port = context.settings.ssh_proxy_port.value;
    let usable: Vec<_> =
        tasks.iter().filter(|task| task.status == "running" && vps::has_ssh(task)).collect();
    if context.out.json && args.output.is_none() {
        context.out.json(&usable);
        return Ok(());
    }
    let mut text =
        String::from("# Written by `kohakuriver ssh config`; run it again after a change.\n");
    let by_account = !usable.is_empty() && certificate::people_log_in(context).await;
    for task in &usable {
        let route = Route::to(context, task, port)?;
        let names: Vec<&str> =
            [Some(route.alias.as_str()), task.name.as_deref()].into_iter().flatten().collect();
        // First, so that its key is tried first.
        text.push_str(&certificate::config_lines(context, task, &names, by_account).await?);
        text.push_str(&format!("\nHost {}\n    User root\n", names.join(" ")));
        for (keyword, value) in &route.options {
            text.push_str(&format!("    {keyword} {value}\n"));
        }
    }
    if usable.is_empty() {
        context.out.note("no running VPS has SSH");
        context.out.hint("`kohakuriver vps create --ssh` makes one");
    }
    let Some(path) = &args.output else {
        context.out.raw(text.as_bytes());
        return Ok(());
    };
    files::replace(path, 0o600, text.as_bytes())
        .map_err(|error| files::unwritable(path, &error))?;
    // ssh reads a relative name from ~/.ssh, not from here.
    let full = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let count = usable.len();
    let things = if count == 1 { "VPS" } else { "VPSes" };
    let shown = full.display();
    context.out.note(format!("{count} {things} written to {shown}"));
    context.out.hint(format!("put `Include {shown}` at the top of ~/.ssh/config"));
    Ok(())
}
