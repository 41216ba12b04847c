//! Limits how fast a node can make the host write, with a token bucket.
//!
//! A runner that reports everything at hello fits the bucket. A runner that floods is read slowly,
//! so its messages wait in its own send buffer; no report is lost.

use std::time::Duration;

use tokio::time::Instant;

/// Messages written at once: the hello of a node with a thousand instances.
const BURST: f64 = 1000.0;
/// Messages per second after that.
const PER_SECOND: f64 = 50.0;

#[derive(Debug)]
pub struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Takes a token. Returns how long the next message must wait.
    pub fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * PER_SECOND).min(BURST) - 1.0;
        Duration::from_secs_f64((-self.left / PER_SECOND).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_at_hello_passes_and_flood_is_delayed() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!((0..1000).all(|_| pace.take(start).is_zero()));
        let mut now = start;
        for _ in 0..500 {
            now += pace.take(now);
        }
        let seconds = (now - start).as_secs_f64();
        assert!((9.0..11.0).contains(&seconds), "{seconds}");
        assert!(pace.take(now + Duration::from_secs(60)).is_zero());
    }
}
