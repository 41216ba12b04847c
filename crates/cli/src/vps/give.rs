//! `kohakuriver vps give`

use clap_complete::ArgValueCandidates;

use super::{called, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
It counts towards the new owner's quota. The old owner has no more than what is shared with them.

Examples:
  kohakuriver vps give web bob
  kohakuriver vps give web bob --yes")]
pub struct GiveArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Whose it becomes
    #[arg(value_name = "USER", add = ArgValueCandidates::new(complete::users))]
    user: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(context: &Context, args: &GiveArgs) -> Result<(), Failure> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    let (name, user) = (called(&task), &args.user);
    let from = task.owner_username.as_ref().map(|owner| format!(" of {owner}")).unwrap_or_default();
    let question = format!("Give VPS {name}{from} to {user}? What is in its disk goes with it.");
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was changed");
        return Ok(());
    }
    let answer = context.api.give(&task.task_id, user).await?;
    if context.out.json {
        context.out.json(&answer);
    } else {
        context.out.line(format!("VPS {name} is {user}'s now"));
    }
    Ok(())
}
