//! How busy the machine is, between two looks.

use kohakuriver_model::Metrics;

use super::memory;

/// Remembers the last look at the processors' counters.
#[derive(Debug, Default)]
pub struct LoadMeter {
    last: Option<Ticks>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

impl LoadMeter {
    pub fn measure(&mut self) -> Metrics {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let now = parse_ticks(&read("/proc/stat"));
        let cpu_percent = now.map_or(0.0, |now| self.percent_until(now));
        let memory = memory::read();
        let load = read("/proc/loadavg");
        Metrics {
            cpu_percent,
            memory_used_bytes: memory
                .map_or(0, |memory| memory.total_bytes.saturating_sub(memory.available_bytes)),
            memory_total_bytes: memory.map_or(0, |memory| memory.total_bytes),
            load_1m: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }

    fn percent_until(&mut self, now: Ticks) -> f32 {
        let last = self.last.replace(now).unwrap_or(Ticks { busy: 0, all: 0 });
        let all = now.all.saturating_sub(last.all);
        let busy = now.busy.saturating_sub(last.busy).min(all);
        if all == 0 { 0.0 } else { (busy as f64 / all as f64 * 100.0) as f32 }
    }
}

/// `cpu user nice system idle iowait irq softirq steal ...`
fn parse_ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> =
        line.split_whitespace().take(8).map(|text| text.parse().unwrap_or(0)).collect();
    let all = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some(Ticks { busy: all - idle, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_the_time_between_two_looks() {
        let first = parse_ticks("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let second = parse_ticks("cpu  175 0 100 700 125 0 0 0 0 0\n").unwrap();
        let mut meter = LoadMeter::default();
        meter.percent_until(first);
        assert_eq!(meter.percent_until(second), 75.0);
        assert_eq!(meter.percent_until(first), 0.0);
        assert_eq!(parse_ticks(""), None);
    }
}
