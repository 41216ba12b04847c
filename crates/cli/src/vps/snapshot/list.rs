//! `kohakuriver vps snapshot list`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::Snapshot;
use kohakuriver_model::Memory;

use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Tone, ago};
use crate::vps::vocabulary::with_list_hint;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
SIZE is the disk space that a snapshot adds to its base, TOTAL the space of both. A USED snapshot is
the base of another VPS's disk and cannot be deleted.

Examples:
  kohakuriver vps snapshot list web
  kohakuriver vps snapshot list web --json | jq -r '.snapshots[].tag'")]
pub struct ListArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
}

pub async fn run(context: &Context, args: &ListArgs) -> Result<(), CommandError> {
    let list = context.api.snapshots(args.vps.as_str()).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&list);
        return Ok(());
    }
    if list.snapshots.is_empty() {
        context.out.note(format!("VPS {} has no snapshot", args.vps));
        context.out.hint(format!("`kohakuriver vps snapshot create {}` creates one", args.vps));
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("TAG", Fit::Whole),
        ("NAME", Fit::Cut),
        ("CREATED", Fit::Whole),
        ("SIZE", Fit::Whole),
        ("TOTAL", Fit::Whole),
        ("USED", Fit::Whole),
        ("MESSAGE", Fit::Cut),
    ]);
    let now = Timestamp::now();
    for snapshot in &list.snapshots {
        grid.row(row(snapshot, now));
    }
    grid.print(context.out);
    Ok(())
}

fn row(snapshot: &Snapshot, now: Timestamp) -> Vec<(Tone, String)> {
    let used = if snapshot.in_use { "yes" } else { "no" };
    let cells = [
        snapshot.tag.clone(),
        snapshot.name.clone().unwrap_or_default(),
        ago(&snapshot.created_at, now),
        Memory::from_bytes(snapshot.own_size).to_string(),
        Memory::from_bytes(snapshot.size).to_string(),
        used.to_owned(),
        snapshot.message.clone(),
    ];
    cells.map(|text| (Tone::Plain, text)).to_vec()
}
