//! `kohakuriver vps assign`: the older name of `vps share` at level use.

use clap_complete::ArgValueCandidates;

use super::share::share;
use crate::api::With;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps assign web bob eve        same as vps share web --with bob --with eve")]
pub struct AssignArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Accounts that can use the VPS.
    #[arg(required = true, value_name = "USER", add = ArgValueCandidates::new(complete::users))]
    users: Vec<String>,
}

pub async fn run(context: &Context, args: &AssignArgs) -> Result<(), CommandError> {
    let with: Vec<With<'_>> = args.users.iter().map(|name| With::User(name)).collect();
    share(context, &args.vps, &with, "use").await
}
