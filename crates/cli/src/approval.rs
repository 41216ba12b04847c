//! `kohakuriver approval`: requests, and an operator's decisions on them.

mod approve;
mod list;
mod reject;

use clap_complete::ArgValueCandidates;

use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::reference::VpsRef;
use crate::vps;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum ApprovalCommand {
    /// List the requests that wait for a decision.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one request in detail.
    Show(ShowArgs),
    /// Approve requests and start their VPSes.
    Approve(approve::ApproveArgs),
    /// Reject requests, with a reason.
    Reject(reject::RejectArgs),
}

#[derive(clap::Args, Clone, Debug)]
pub struct ShowArgs {
    /// Id or name of a request.
    #[arg(value_name = "REQUEST", add = ArgValueCandidates::new(complete::requests))]
    request: VpsRef,
}

pub async fn run(context: &Context, command: ApprovalCommand) -> Result<(), CommandError> {
    match command {
        ApprovalCommand::List(_) => list::run(context).await,
        ApprovalCommand::Show(args) => {
            let task = context.api.task(args.request.as_str()).await.map_err(with_list_hint)?;
            vps::show(context, &task);
            Ok(())
        }
        ApprovalCommand::Approve(args) => approve::run(context, &args).await,
        ApprovalCommand::Reject(args) => reject::run(context, &args).await,
    }
}

fn with_list_hint(failure: CommandError) -> CommandError {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.hint("`kohakuriver approval list` shows the waiting requests")
}
