//! `kohakuriver vps events`

use std::time::Instant;

use clap_complete::ArgValueCandidates;
use kohakuriver_api::Event;

use super::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Progress, Tone, at, one_line};
use crate::wait::{self, News, RetryBudget};

/// More than any VPS does between two looks.
const NEWS_LIMIT: u32 = 200;
/// The columns where lines come one by one and their widths are not known beforehand.
const TIME_WIDTH: usize = 19;
const WHO_WIDTH: usize = 20;
const WHAT_WIDTH: usize = 10;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Oldest first, in this machine's time. Events outlive their VPS: name a deleted one by its whole id.

Examples:
  kohakuriver vps events web
  kohakuriver vps events web --follow
  kohakuriver vps events web --limit 1000 --json | jq -r '.[] | select(.kind == \"oom\").at'")]
pub struct EventsArgs {
    /// Id or name
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// The newest so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print new ones as they happen, until the VPS is gone or Ctrl-C
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
            context.out.note(format!("nothing is known to have happened to VPS {}", args.vps));
        } else {
            grid(&events).print(context.out);
        }
        return Ok(());
    }
    wait::watching(follow(context, args)).await
}

async fn follow(context: &Context, args: &EventsArgs) -> Result<(), CommandError> {
    // Later looks go by the id: it still means this VPS when the name means another.
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
        // Not every event changes the VPS, so the events are looked at after each answer, new or
        // not. Once it is gone there is one look left.
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
