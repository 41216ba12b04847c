//! `kohakuriver vps events`

use std::time::Instant;

use clap_complete::ArgValueCandidates;
use kohakuriver_api::Event;

use super::vocabulary::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Progress, Tone, at, one_line};
use crate::wait::{self, News, RetryBudget};

/// Number of events fetched per poll, more than a VPS produces between two polls.
const NEWS_LIMIT: u32 = 200;
/// Fixed column widths for `--follow`, which prints lines before all widths are known.
const TIME_WIDTH: usize = 19;
const WHO_WIDTH: usize = 20;
const WHAT_WIDTH: usize = 10;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Oldest first, in this computer's time zone. Events outlive their VPS: use a deleted one's full id.

Examples:
  kohakuriver vps events web
  kohakuriver vps events web --follow
  kohakuriver vps events web --limit 1000 --json | jq -r '.[] | select(.kind == \"oom\").at'")]
pub struct EventsArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Number of events to print, newest last.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print new events as they occur, until the VPS is deleted or Ctrl-C.
    #[arg(short, long)]
    follow: bool,
}

pub async fn run(context: &Context, args: &EventsArgs) -> Result<(), CommandError> {
    if !args.follow {
        let events =
            context.api.events(args.vps.as_str(), args.limit).await.map_err(with_list_hint)?;
        if context.out.json {
            context.out.json(&events);
        } else if events.is_empty() {
            context.out.note(format!("no events of VPS {}", args.vps));
        } else {
            grid(&events).print(context.out);
        }
        return Ok(());
    }
    wait::watching(follow(context, args)).await
}

async fn follow(context: &Context, args: &EventsArgs) -> Result<(), CommandError> {
    // Later polls use the id, because the name may pass to another VPS.
    let (id, mut since) = match context.api.task(args.vps.as_str()).await {
        Ok(task) => (task.task_id, Some(task.revision)),
        Err(failure) if failure.kind == Kind::NotFound => (args.vps.to_string(), None),
        Err(failure) => return Err(failure),
    };
    let mut last = i64::MIN;
    let mut limit = args.limit;
    loop {
        let events = look(context, &id, limit).await.map_err(with_list_hint)?;
        for event in events.iter().filter(|event| event.id > last) {
            print(context, event);
        }
        last = events.iter().map(|event| event.id).fold(last, i64::max);
        limit = NEWS_LIMIT;
        let Some(revision) = since else {
            context.out.note(format!("VPS {} is gone", args.vps));
            return Ok(());
        };
        // Not every event changes the VPS's revision, so the events are polled after each reply.
        // After the VPS's deletion there is one last poll.
        let mut quiet = Progress::quiet(context.out);
        let next = News::of(&id, Some(revision)).next(context, &mut quiet).await?;
        since = next.map(|task| task.revision);
    }
}

async fn look(context: &Context, id: &str, limit: u32) -> Result<Vec<Event>, CommandError> {
    let mut retries = RetryBudget::default();
    let mut quiet = Progress::quiet(context.out);
    loop {
        let asked = Instant::now();
        match context.api.events(id, limit).await {
            Ok(events) => return Ok(events),
            Err(failure) => retries.wait(failure, asked, &mut quiet).await?,
        }
    }
}

fn print(context: &Context, event: &Event) {
    if context.out.json {
        context.out.json_line(event);
        return;
    }
    let (time, who, what) = (at(&event.at), &event.actor, &event.kind);
    let line = format!(
        "{time:TIME_WIDTH$}  {who:WHO_WIDTH$}  {what:WHAT_WIDTH$}  {}",
        one_line(&event.detail)
    );
    context.out.line(line.trim_end());
}

fn grid(events: &[Event]) -> Grid {
    let mut grid = Grid::new(&[
        ("TIME", Fit::Whole),
        ("WHO", Fit::Cut),
        ("WHAT", Fit::Whole),
        ("DETAIL", Fit::Cut),
    ]);
    for event in events {
        grid.row(vec![
            (Tone::Plain, at(&event.at)),
            (Tone::Plain, event.actor.clone()),
            (tone(&event.kind), event.kind.clone()),
            (Tone::Plain, one_line(&event.detail)),
        ]);
    }
    grid
}

fn tone(kind: &str) -> Tone {
    match kind {
        "failed" | "oom" | "lost" => Tone::Bad,
        "running" | "found" => Tone::Good,
        _ => Tone::Plain,
    }
}
