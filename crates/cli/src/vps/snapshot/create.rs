//! `kohakuriver vps snapshot create`

use clap_complete::ArgValueCandidates;
use kohakuriver_model::Memory;

use super::which::new_name;
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::reference::VpsRef;
use crate::ui::Progress;
use crate::vps::vocabulary::{called, with_list_hint};
use crate::wait;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The VPS can keep running. A large disk takes some minutes.

Examples:
  kohakuriver vps snapshot create web
  kohakuriver vps snapshot create web --name clean -m 'before the upgrade'")]
pub struct CreateArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Name of the snapshot: lower-case letters, digits and hyphens [default: none].
    #[arg(long, value_parser = new_name)]
    name: Option<String>,
    /// Description of the snapshot.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

pub async fn run(context: &Context, args: &CreateArgs) -> Result<(), CommandError> {
    let task = context.api.task(args.vps.as_str()).await.map_err(with_list_hint)?;
    let name = called(&task);
    let list = || format!("`kohakuriver vps snapshot list {name}` shows whether it was created");
    let work =
        context.api.create_snapshot(&task.task_id, args.name.as_deref(), args.message.as_deref());
    let mut progress = Progress::new(context.out);
    progress.show(&format!("creating a snapshot of {name}"), None);
    let result = wait::unless_interrupted(work, || {
        CommandError::interrupted("stopped waiting; the snapshot may still be created").hint(list())
    })
    .await;
    drop(progress);
    let made = result.map_err(|failure| {
        let unknown = failure.kind == Kind::Unreachable && failure.maybe_done;
        if unknown { failure.hint(list()) } else { failure }
    })?;
    if context.out.json {
        context.out.json(&made);
        return Ok(());
    }
    let size = Memory::from_bytes(made.snapshot.own_size);
    let title = args.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    context.out.line(format!("snapshot {}{title} of VPS {name} is created: {size}", made.tag));
    Ok(())
}
