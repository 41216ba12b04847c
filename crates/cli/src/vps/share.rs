//! `kohakuriver vps share` and `kohakuriver vps unshare`

use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCandidates;

use super::batch::print_json;
use super::vocabulary::{called, with_list_hint};
use crate::api::With;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

/// The share levels, in ascending order.
const LEVELS: [&str; 3] = ["view", "use", "manage"];

/// The accounts and groups of a share.
#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = true)]
pub struct WithArgs {
    /// Account; repeatable.
    #[arg(long = "with", value_name = "USER", add = ArgValueCandidates::new(complete::users))]
    users: Vec<String>,
    /// Group, for all its members; repeatable.
    #[arg(long = "group", value_name = "GROUP", add = ArgValueCandidates::new(complete::groups))]
    groups: Vec<String>,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
  view     sees that it is there and how it is
  use      gets inside: SSH, terminals, forwards, files
  manage   starts, stops, changes and snapshots it too

Examples:
  kohakuriver vps share web --with bob
  kohakuriver vps share web --with bob --with eve --level view
  kohakuriver vps share web --group students --level manage")]
pub struct ShareArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    #[command(flatten)]
    with: WithArgs,
    /// Access level.
    #[arg(long, default_value = "use", value_parser = PossibleValuesParser::new(LEVELS))]
    level: String,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps unshare web --with bob
  kohakuriver vps unshare web --group students")]
pub struct UnshareArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    #[command(flatten)]
    with: WithArgs,
}

impl WithArgs {
    fn all(&self) -> Vec<With<'_>> {
        let users = self.users.iter().map(|name| With::User(name));
        users.chain(self.groups.iter().map(|name| With::Group(name))).collect()
    }
}

pub async fn run(context: &Context, args: &ShareArgs) -> Result<(), CommandError> {
    share(context, &args.vps, &args.with.all(), &args.level).await
}

/// Shares the VPS with each account and group.
pub async fn share(
    context: &Context,
    vps: &VpsRef,
    with: &[With<'_>],
    level: &str,
) -> Result<(), CommandError> {
    let task = context.api.task(vps.as_str()).await.map_err(with_list_hint)?;
    let mut answers = Vec::new();
    for one in with {
        answers.push(context.api.share(&task.task_id, *one, level).await?);
        if !context.out.json {
            let may = match level {
                "view" => "can view it",
                "use" => "can use it",
                _ => "can manage it",
            };
            context.out.line(format!("VPS {} is shared: {} {may}", called(&task), say(*one)));
        }
    }
    if context.out.json {
        print_json(context, with.len(), answers);
    }
    Ok(())
}

pub async fn unshare(context: &Context, args: &UnshareArgs) -> Result<(), CommandError> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    let with = args.with.all();
    let mut answers = Vec::new();
    for one in &with {
        let done = context.api.unshare(&task.task_id, *one).await;
        answers.push(done.map_err(|failure| {
            let name = called(&task);
            failure.or_hint(|| format!("`kohakuriver vps status {name}` shows its shares"))
        })?);
        if !context.out.json {
            let name = called(&task);
            context.out.line(format!("VPS {name} is no longer shared with {}", say(*one)));
        }
    }
    if context.out.json {
        print_json(context, with.len(), answers);
    }
    Ok(())
}

fn say(with: With<'_>) -> String {
    match with {
        With::User(name) => name.to_owned(),
        With::Group(name) => format!("group {name}"),
    }
}
