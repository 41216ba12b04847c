//! `kohakuriver node health`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{HealthSample, NodeHealth};
use kohakuriver_model::{Memory, NodeName};

use super::list::memory;
use super::status::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui::{Panel, status_tone};

const BUCKETS: usize = 12;
const BUCKET_MS: i64 = 5 * 60 * 1000;
/// The mark for an interval without samples.
const GAP: char = '\u{b7}';
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Each mark is the average of 5 minutes, the newest on the right; a dot means no data.

Examples:
  kohakuriver node health gpu-01
  kohakuriver node health gpu-01 --json | jq '.samples[-1]'")]
pub struct HealthArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
}

pub async fn run(context: &Context, args: &HealthArgs) -> Result<(), CommandError> {
    let name = args.node.as_str();
    let health = context.api.node_health(name).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&health);
        return Ok(());
    }
    panel(&health, Timestamp::now().as_millisecond()).print(context.out);
    if health.samples.is_empty() {
        context.out.note(format!("no data from node {name} in the last hour"));
        context.out.hint(format!("`kohakuriver node status {name}` shows when it was last seen"));
    }
    Ok(())
}

fn panel(health: &NodeHealth, now_ms: i64) -> Panel {
    let mut panel = Panel::default();
    panel.add("node", &health.hostname);
    panel.tinted("status", status_tone(&health.status), &health.status);
    let Some(last) = health.samples.last() else {
        return panel;
    };
    let online = health.status == "online";
    // Times are the host's, whose clock may differ from the local one, so an online node's newest
    // sample counts as current.
    let end_ms = if online { last.at_ms } else { last.at_ms.max(now_ms) };
    let line = |value: fn(&HealthSample) -> f64| sparkline(&health.samples, end_ms, value);
    let highest = health.samples.iter().map(|sample| sample.cpu_percent).fold(0.0, f32::max);
    let when = if online { "now" } else { "when last seen" };
    panel.add(
        "cpu",
        format!("{}  {:.0} % {when}, at most {highest:.0} %", line(cpu_share), last.cpu_percent),
    );
    panel.add(
        "memory",
        format!(
            "{}  {} {when}, at most {}",
            line(memory_share),
            memory(last.memory_used_bytes, last.memory_total_bytes),
            Memory::from_bytes(
                health.samples.iter().map(|sample| sample.memory_used_bytes).max().unwrap_or(0)
            ),
        ),
    );
    panel.add("load", format!("{:.2} {when}", last.load_1m));
    panel
}

fn cpu_share(sample: &HealthSample) -> f64 {
    f64::from(sample.cpu_percent) / 100.0
}

fn memory_share(sample: &HealthSample) -> f64 {
    match sample.memory_total_bytes {
        0 => 0.0,
        total => sample.memory_used_bytes as f64 / total as f64,
    }
}

/// Draws the hour up to `end_ms`, oldest on the left.
fn sparkline(samples: &[HealthSample], end_ms: i64, value: fn(&HealthSample) -> f64) -> String {
    let mut sums = [(0.0, 0_u32); BUCKETS];
    for sample in samples {
        let age = end_ms.saturating_sub(sample.at_ms).max(0) / BUCKET_MS;
        let place = usize::try_from(age).ok().and_then(|age| (BUCKETS - 1).checked_sub(age));
        if let Some((sum, count)) = place.and_then(|place| sums.get_mut(place)) {
            *sum += value(sample);
            *count += 1;
        }
    }
    let mark = |(sum, count): (f64, u32)| {
        if count == 0 { GAP } else { bar(sum / f64::from(count)) }
    };
    sums.into_iter().map(mark).collect()
}

fn bar(share: f64) -> char {
    let height = (share.clamp(0.0, 1.0) * BARS.len() as f64) as usize;
    BARS[height.min(BARS.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Output;

    const MINUTE: i64 = 60_000;

    fn sample(at_ms: i64, cpu_percent: f32) -> HealthSample {
        HealthSample {
            at_ms,
            cpu_percent,
            memory_used_bytes: 1 << 30,
            memory_total_bytes: 4 << 30,
            load_1m: 0.5,
        }
    }

    #[test]
    fn hour_is_twelve_marks_with_dots_for_gaps() {
        let end = 100 * MINUTE;
        let samples =
            [sample(end - 59 * MINUTE, 0.0), sample(end - 6 * MINUTE, 50.0), sample(end, 100.0)];
        assert_eq!(sparkline(&samples, end, cpu_share), "▁·········▅█");
        // Older than an hour, and from a clock that runs ahead.
        let odd = [sample(end - 61 * MINUTE, 100.0), sample(end + MINUTE, 0.0)];
        assert_eq!(sparkline(&odd, end, cpu_share), "···········▁");
    }

    #[test]
    fn out_of_range_share_still_has_a_mark() {
        for share in [f64::NAN, -1.0, 0.0, 1.0, 9.0] {
            assert!(BARS.contains(&bar(share)));
        }
    }

    #[test]
    fn offline_node_shows_samples_as_last_seen() {
        let out = Output { json: false, colour: false };
        let mut health = NodeHealth {
            hostname: "gpu-01".to_owned(),
            status: "online".to_owned(),
            samples: vec![sample(0, 30.0)],
        };
        let text = |health: &NodeHealth| panel(health, 20 * MINUTE).render(out).join("\n");
        assert!(text(&health).contains("···········▃  30 % now"), "{}", text(&health));
        assert!(text(&health).contains("1G/4G now"), "{}", text(&health));
        health.status = "offline".to_owned();
        assert!(text(&health).contains("▃····  30 % when last seen"), "{}", text(&health));
    }
}
