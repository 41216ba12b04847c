//! `kohakuriver vps resume`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps resume web
  kohakuriver vps resume web db --no-wait")]
pub struct ResumeArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_active))]
    vps: Vec<VpsRef>,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &ResumeArgs) -> Result<(), CommandError> {
    act::run(context, Act::Resume, &args.vps, !args.no_wait).await
}
