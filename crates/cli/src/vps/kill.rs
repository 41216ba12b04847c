//! `kohakuriver vps kill`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Unsaved data of its programs is lost; `vps stop` shuts them down gracefully.

Examples:
  kohakuriver vps kill web
  kohakuriver vps kill web db --no-wait")]
pub struct KillArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Vec<VpsRef>,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &KillArgs) -> Result<(), CommandError> {
    act::run(context, Act::Kill, &args.vps, !args.no_wait).await
}
