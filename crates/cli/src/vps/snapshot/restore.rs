//! `kohakuriver vps snapshot restore`

use std::slice;

use clap_complete::ArgValueCandidates;

use super::{LATEST, Which, agree_to_lose_disk};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps::act::{self, Act};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The VPS restarts on that disk; data written since the snapshot is lost. To keep it, create a
snapshot of it first, or make a second VPS with `kohakuriver vps create --from-snapshot VPS@WHICH`.

Examples:
  kohakuriver vps snapshot restore web                 the newest; asks for confirmation
  kohakuriver vps snapshot restore web clean --yes     without confirmation")]
pub struct RestoreArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Tag or name of the snapshot, or latest.
    #[arg(value_name = "WHICH", default_value = LATEST)]
    which: Which,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(context: &Context, args: &RestoreArgs) -> Result<(), CommandError> {
    let agreed = agree_to_lose_disk(context, &args.vps, &args.which, args.yes).await?;
    let Some((vps, tag)) = agreed else {
        return Ok(());
    };
    act::run(context, Act::Restore(&tag), slice::from_ref(&vps), !args.no_wait).await
}
