//! `kohakuriver vps restart`

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use crate::complete;
use crate::context::Context;
use crate::failure::Failure;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The disk is the one the VPS had: restarting loses processes, never files.

Examples:
  kohakuriver vps restart web
  kohakuriver vps restart web db --no-wait")]
pub struct RestartArgs {
    /// Ids or names
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: Vec<VpsRef>,
    /// Return as soon as the host has taken the request
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &RestartArgs) -> Result<(), Failure> {
    act::run(context, Act::Restart, &args.vps, !args.no_wait).await
}
