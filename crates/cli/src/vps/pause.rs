//! `kohakuriver vps pause`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
A paused VPS retains its cores, memory and GPUs; open connections wait. A virtual machine cannot be
paused: stop it (its disk is kept) and restart it.

Examples:
  kohakuriver vps pause web
  kohakuriver vps pause web db --no-wait")]
pub struct PauseArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Vec<VpsRef>,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &PauseArgs) -> Result<(), CommandError> {
    act::run(context, Act::Pause, &args.vps, !args.no_wait).await
}
