//! `kohakuriver vps update`

use std::slice;

use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCandidates;
use kohakuriver_api::UpdateVps;
use kohakuriver_model::Memory;

use super::act::{self, Act};
use super::parse::{ON_OOM, memory};
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;

#[derive(clap::Args, Clone, Debug)]
#[command(
    // clap's own usage line lists every option twice.
    override_usage = "kohakuriver vps update <VPS> <CHANGES>",
    after_help = "\
Most changes apply to a running VPS at once. If one waits for the next restart, a note says so and
the exit code is 1. A virtual machine always has a memory size, and no process limit.

Examples:
  kohakuriver vps update web -c 8 -m 16G
  kohakuriver vps update web -c 0 -m none            no limits
  kohakuriver vps update vm -c 4 -m 8G               a virtual machine
  kohakuriver vps update web --snapshot-on-stop on --keep-snapshots 3"
)]
pub struct UpdateArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    #[command(flatten)]
    changes: Changes,
    /// Return once the host has accepted the request.
    #[arg(long)]
    no_wait: bool,
}

#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Number of CPU cores; 0 means no limit.
    #[arg(short, long, value_name = "N")]
    cores: Option<u32>,
    /// Memory limit, for example 8G or 512M; none removes it.
    #[arg(short, long, value_name = "SIZE", value_parser = memory_or_none)]
    memory: Option<Limit>,
    /// Limit of concurrent processes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pids_limit: Option<u32>,
    /// Create a snapshot at each stop.
    #[arg(long, value_name = "WHETHER", value_parser = PossibleValuesParser::new(["on", "off"]))]
    snapshot_on_stop: Option<String>,
    /// Number of snapshots to keep, up to 1000; older ones are deleted. 0 keeps all.
    #[arg(long, value_name = "N")]
    keep_snapshots: Option<u32>,
    /// Policy when the kernel kills a process for lack of memory: end the VPS, or keep the rest
    /// running.
    #[arg(long, value_name = "WHAT", value_parser = PossibleValuesParser::new(ON_OOM))]
    on_oom: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    None,
    Bytes(Memory),
}

pub async fn run(context: &Context, args: &UpdateArgs) -> Result<(), CommandError> {
    let change = body(&args.changes);
    act::run(context, Act::Update(&change), slice::from_ref(&args.vps), !args.no_wait).await
}

fn body(changes: &Changes) -> UpdateVps {
    UpdateVps {
        required_cores: changes.cores.map(i64::from),
        // The parser keeps it within the signed range.
        required_memory_bytes: changes.memory.and_then(|limit| match limit {
            Limit::None => Some(0),
            Limit::Bytes(memory) => i64::try_from(memory.bytes()).ok(),
        }),
        pids_limit: changes.pids_limit,
        snapshot_on_stop: changes.snapshot_on_stop.as_deref().map(|word| word == "on"),
        keep_snapshots: changes.keep_snapshots,
        on_oom: changes.on_oom.clone(),
        ..UpdateVps::default()
    }
}

fn memory_or_none(text: &str) -> Result<Limit, String> {
    match text {
        "none" | "0" => Ok(Limit::None),
        text => memory(text).map(Limit::Bytes),
    }
}
