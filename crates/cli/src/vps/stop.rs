//! `kohakuriver vps stop`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps stop web
  kohakuriver vps stop web db --no-wait")]
pub struct StopArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Vec<VpsRef>,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &StopArgs) -> Result<(), CommandError> {
    act::run(context, Act::Stop, &args.vps, !args.no_wait).await
}
