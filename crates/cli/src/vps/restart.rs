//! `kohakuriver vps restart`

use std::slice;

use clap_complete::ArgValueCandidates;

use super::act::{self, Act};
use super::snapshot::{self, Which};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The disk is the one the VPS had: restarting loses processes, never files. With --from-snapshot the
disk becomes what it was in the snapshot, and what was written since is lost.

Examples:
  kohakuriver vps restart web
  kohakuriver vps restart web db --no-wait
  kohakuriver vps restart web --from-snapshot            with the newest snapshot's disk
  kohakuriver vps restart web --from-snapshot clean --yes")]
pub struct RestartArgs {
    /// Ids or names
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: Vec<VpsRef>,
    /// Put the disk back to a snapshot: its tag, its name or latest
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = snapshot::LATEST)]
    from_snapshot: Option<Which>,
    /// Do not ask; only --from-snapshot does
    #[arg(short, long)]
    yes: bool,
    /// Return as soon as the host has taken the request
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &RestartArgs) -> Result<(), CommandError> {
    let Some(which) = &args.from_snapshot else {
        return act::run(context, Act::Restart, &args.vps, !args.no_wait).await;
    };
    let [vps] = args.vps.as_slice() else {
        return Err(CommandError::usage("a snapshot belongs to one VPS, and several were named")
            .hint("`kohakuriver vps restart VPS --from-snapshot WHICH` for each"));
    };
    let Some((vps, tag)) = snapshot::agree_to_lose_disk(context, vps, which, args.yes).await?
    else {
        return Ok(());
    };
    act::run(context, Act::RestartFrom(&tag), slice::from_ref(&vps), !args.no_wait).await
}
