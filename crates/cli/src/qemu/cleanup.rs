//! `kohakuriver qemu cleanup`

use clap_complete::ArgValueCandidates;
use kohakuriver_model::{Memory, NodeName};

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
If the virtual machine belongs to a VPS, the VPS is deleted too, as by `kohakuriver vps delete`. For
an orphaned one, give its node, which `kohakuriver qemu instances` shows.

Examples:
  kohakuriver qemu cleanup 7398213345412345856 --node gpu-01
  kohakuriver qemu cleanup 7398213345412345856 --node gpu-01 --force --yes    even if it is running")]
pub struct CleanupArgs {
    /// Id of the virtual machine, or the name of its VPS.
    #[arg(value_name = "TASK_ID")]
    machine: VpsRef,
    /// Node of the virtual machine.
    #[arg(short, long, visible_alias = "hostname", value_name = "NODE", add = ArgValueCandidates::new(complete::nodes))]
    node: Option<NodeName>,
    /// Delete the virtual machine even if it is running.
    #[arg(short, long)]
    force: bool,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(context: &Context, args: &CleanupArgs) -> Result<(), CommandError> {
    let question = format!("Delete virtual machine {} with its disk and snapshots?", args.machine);
    if !args.yes && !context.out.confirm(&question, "--yes")? {
        context.out.note("nothing was deleted");
        return Ok(());
    }
    let node = args.node.as_ref().map(NodeName::as_str);
    let answer = context.api.delete_vm_instance(args.machine.as_str(), node, args.force).await;
    let answer = answer.map_err(|failure| {
        failure.or_hint(|| "`kohakuriver qemu instances` shows all virtual machines".to_owned())
    })?;
    if context.out.json {
        context.out.json(&answer);
    } else {
        let freed = Memory::from_bytes(answer.freed_bytes);
        context.out.line(format!("{} ({freed} of disk)", answer.message));
    }
    Ok(())
}
