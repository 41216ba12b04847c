//! `kohakuriver vps kill`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
What its programs have not written to the disk is lost; `vps stop` asks them first.

Examples:
  kohakuriver vps kill web
  kohakuriver vps kill web db --no-wait")]
pub struct KillArgs {
    /// Ids or names
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Vec<VpsRef>,
    /// Return as soon as the host has taken the request
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &KillArgs) -> Result<(), CommandError> {
    act::run(context, Act::Kill, &args.vps, !args.no_wait).await
}
