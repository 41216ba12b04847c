//! `kohakuriver vps give`

use clap_complete::ArgValueCandidates;

use super::vocabulary::{called, with_list_hint};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The VPS stays yours, and in your quota, until the receiver takes it (`kohakuriver vps offers`); the
offer lapses after 14 days. The new owner gets its disk and snapshots; you keep only the access that
they share with you. Your keys in `kohakuriver vps keys list` stay in it: remove them first. An admin
that names their own account takes the VPS over at once.

Examples:
  kohakuriver vps give web bob
  kohakuriver vps give web bob --yes
  kohakuriver vps give web --withdraw")]
pub struct GiveArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Account to offer it to.
    #[arg(value_name = "USER", required_unless_present = "withdraw", add = ArgValueCandidates::new(complete::users))]
    user: Option<String>,
    /// Withdraw the offer.
    #[arg(long, conflicts_with = "user")]
    withdraw: bool,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(context: &Context, args: &GiveArgs) -> Result<(), CommandError> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    let name = called(&task);
    let (answer, line) = match &args.user {
        Some(user) => {
            let question =
                format!("Offer VPS {name} to {user}? Its disk and snapshots go with it.");
            if !args.yes && !context.out.confirm(&question, "--yes")? {
                context.out.note("nothing was changed");
                return Ok(());
            }
            let answer = context.api.give(&task.task_id, user).await?;
            let said = answer["message"].as_str().unwrap_or_default();
            let line = if said.contains("belongs to") {
                format!("VPS {name} is {user}'s now")
            } else {
                format!("VPS {name} is offered to {user}; it stays yours until they take it")
            };
            (answer, line)
        }
        None => {
            let answer = context.api.withdraw_offer(&task.task_id).await?;
            (answer, format!("the offer of VPS {name} is withdrawn"))
        }
    };
    if context.out.json {
        context.out.json(&answer);
    } else {
        context.out.line(line);
    }
    Ok(())
}
