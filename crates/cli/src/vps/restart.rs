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
The VPS keeps its disk: a restart ends processes but loses no files. With --from-snapshot the disk is
reset to the snapshot, and data written since is lost.

Examples:
  kohakuriver vps restart web
  kohakuriver vps restart web db --no-wait
  kohakuriver vps restart web --from-snapshot            with the newest snapshot's disk
  kohakuriver vps restart web --from-snapshot clean --yes")]
pub struct RestartArgs {
    /// Ids or names of VPSes.
    #[arg(required = true, value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: Vec<VpsRef>,
    /// Reset the disk to a snapshot, given by its tag, its name or latest.
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = snapshot::LATEST)]
    from_snapshot: Option<Which>,
    /// Skip the confirmation of --from-snapshot.
    #[arg(short, long)]
    yes: bool,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &RestartArgs) -> Result<(), CommandError> {
    let Some(which) = &args.from_snapshot else {
        return act::run(context, Act::Restart, &args.vps, !args.no_wait).await;
    };
    let [vps] = args.vps.as_slice() else {
        return Err(CommandError::usage("--from-snapshot takes a single VPS")
            .hint("run `kohakuriver vps restart VPS --from-snapshot WHICH` for each"));
    };
    let Some((vps, tag)) = snapshot::agree_to_lose_disk(context, vps, which, args.yes).await?
    else {
        return Ok(());
    };
    act::run(context, Act::RestartFrom(&tag), slice::from_ref(&vps), !args.no_wait).await
}
