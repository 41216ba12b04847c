//! `kohakuriver audit list`

use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kohakuriver_api::AuditEntry;

use crate::context::Context;
use crate::duration;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Progress, Tone, at, one_line};
use crate::wait::{self, RetryBudget};

/// The interval between two requests for new entries.
const PAUSE: Duration = Duration::from_secs(3);
/// The most entries of one request; older ones are fetched with further requests.
const NEWS_LIMIT: u32 = 200;
/// The column widths for lines that are printed one at a time, before all widths are known.
const TIME_WIDTH: usize = 19;
const WHO_WIDTH: usize = 16;
const FROM_WIDTH: usize = 15;
const WHAT_WIDTH: usize = 18;
const RESULT_WIDTH: usize = 8;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Oldest first, in this machine's time. An action is named whole, or by its beginning.

Examples:
  kohakuriver audit list --since 2d
  kohakuriver audit list --actor ann --action vps
  kohakuriver audit list --action auth.login --follow
  kohakuriver audit list --json | jq -r '.[] | select(.result != \"ok\").actor'")]
pub struct ListArgs {
    /// Only actions of this account.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only this action, for example vps.delete.
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only actions on this object.
    #[arg(long, value_name = "OBJECT")]
    object: Option<String>,
    /// Only entries since a time or within a duration: 2h, 7d, 2026-01-31, 2026-01-31T12:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Number of entries, newest first.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print new entries as they arrive, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
}

/// A point in time, or a duration before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Ago(SignedDuration),
    At(Timestamp),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(seconds) = duration::seconds(text) {
        let seconds = i64::try_from(seconds).map_err(|_| "nothing is that old".to_owned())?;
        return Ok(Since::Ago(SignedDuration::from_secs(seconds)));
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(Since::At(moment));
    }
    // A day, or a time without a zone, is meant as it is here.
    let here = text.parse::<jiff::civil::DateTime>().ok().or_else(|| {
        text.parse::<jiff::civil::Date>()
            .ok()
            .map(|day| day.to_datetime(jiff::civil::Time::midnight()))
    });
    here.and_then(|time| time.to_zoned_datetime(TimeZone::system()).ok())
        .map(|time| Since::At(time.timestamp()))
        .ok_or_else(|| {
            "write 2h, 7d, a day like 2026-01-31, or a time like 2026-01-31T12:00Z".to_owned()
        })
}

impl Since {
    fn moment(self, now: Timestamp) -> Result<Timestamp, CommandError> {
        match self {
            Self::At(moment) => Ok(moment),
            Self::Ago(time) => now
                .checked_sub(time)
                .map_err(|_| CommandError::usage("--since is older than anything")),
        }
    }
}

pub async fn run(context: &Context, args: &ListArgs) -> Result<(), CommandError> {
    let query = query(args, Timestamp::now())?;
    if !args.follow {
        let mut entries = context.api.audit(&query).await?;
        if context.out.json {
            context.out.json(&entries);
            return Ok(());
        }
        entries.sort_by_key(|entry| entry.seq);
        if entries.is_empty() {
            context.out.note("the log has nothing like that");
        } else {
            grid(&entries).print(context.out);
        }
        return Ok(());
    }
    wait::watching(follow(context, query)).await
}

fn query(args: &ListArgs, now: Timestamp) -> Result<Vec<(&'static str, String)>, CommandError> {
    let mut query = vec![("limit", args.limit.to_string())];
    let words = [("actor", &args.actor), ("action", &args.action), ("object", &args.object)];
    query.extend(words.into_iter().filter_map(|(key, word)| Some((key, word.clone()?))));
    if let Some(since) = args.since {
        query.push(("since", since.moment(now)?.to_string()));
    }
    Ok(query)
}

async fn follow(context: &Context, query: Vec<(&str, String)>) -> Result<(), CommandError> {
    let mut entries = look(context, &query).await?;
    entries.reverse();
    loop {
        entries.iter().for_each(|entry| print(context, entry));
        let last = match entries.last() {
            Some(entry) => entry.seq,
            // Nothing like it yet: what comes from now on, whatever came before.
            None => newest(context).await?,
        };
        entries = behind(context, &query, last).await?;
    }
}

/// Returns the sequence number of the newest entry.
async fn newest(context: &Context) -> Result<i64, CommandError> {
    let page = look(context, &[("limit", "1".to_owned())]).await?;
    Ok(page.first().map_or(0, |entry| entry.seq))
}

/// Waits for entries after a sequence number, and returns them oldest first.
async fn behind(
    context: &Context,
    query: &[(&str, String)],
    last: i64,
) -> Result<Vec<AuditEntry>, CommandError> {
    let wanted = query.iter().filter(|(key, _)| *key != "limit").cloned();
    let mut query: Vec<_> = wanted.collect();
    query.push(("limit", NEWS_LIMIT.to_string()));
    query.push(("after", last.to_string()));
    loop {
        let entries = look(context, &query).await?;
        if !entries.is_empty() {
            return Ok(entries);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(
    context: &Context,
    query: &[(&str, String)],
) -> Result<Vec<AuditEntry>, CommandError> {
    let mut retries = RetryBudget::default();
    let mut quiet = Progress::quiet(context.out);
    loop {
        let asked = Instant::now();
        match context.api.audit(query).await {
            Ok(entries) => return Ok(entries),
            Err(failure) => retries.wait(failure, asked, &mut quiet).await?,
        }
    }
}

fn print(context: &Context, entry: &AuditEntry) {
    if context.out.json {
        context.out.json_line(entry);
        return;
    }
    let AuditEntry { actor, address, action, result, .. } = entry;
    let time = at(&entry.at);
    let line = format!(
        "{time:TIME_WIDTH$}  {actor:WHO_WIDTH$}  {address:FROM_WIDTH$}  {action:WHAT_WIDTH$}  {result:RESULT_WIDTH$}  {}",
        what(entry)
    );
    context.out.line(crate::ui::printable(line.trim_end()));
}

fn grid(entries: &[AuditEntry]) -> Grid {
    let mut grid = Grid::new(&[
        ("TIME", Fit::Whole),
        ("WHO", Fit::Cut),
        ("FROM", Fit::Cut),
        ("ACTION", Fit::Whole),
        ("RESULT", Fit::Cut),
        ("OBJECT", Fit::Cut),
    ]);
    for entry in entries {
        let tone = if entry.result == "ok" { Tone::Plain } else { Tone::Bad };
        grid.row(vec![
            (Tone::Plain, at(&entry.at)),
            (Tone::Plain, entry.actor.clone()),
            (Tone::Plain, entry.address.clone()),
            (Tone::Plain, entry.action.clone()),
            (tone, entry.result.clone()),
            (Tone::Plain, what(entry)),
        ]);
    }
    grid
}

/// Joins the object and the details.
fn what(entry: &AuditEntry) -> String {
    let words = [one_line(&entry.object), one_line(&entry.detail)];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_before_now_or_a_moment() {
        assert_eq!(since("2d"), Ok(Since::Ago(SignedDuration::from_hours(48))));
        let moment: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(since("2026-01-31T12:00Z"), Ok(Since::At(moment)));
        assert!(matches!(since("2026-01-31"), Ok(Since::At(_))));
        assert!(matches!(since("2026-01-31T12:00"), Ok(Since::At(_))));
        for bad in ["", "yesterday", "2d ago", "2026-13-01"] {
            assert!(since(bad).is_err(), "{bad:?}");
        }
        let now: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        let then = Since::Ago(SignedDuration::from_hours(48)).moment(now).unwrap();
        assert_eq!(then.to_string(), "2026-01-01T00:00:00Z");
    }
}
