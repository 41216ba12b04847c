//! How fast a node may make the host write: a bucket that fills again.
//!
//! A runner that reports everything at hello has enough in the bucket. One that floods is read
//! slowly, so its messages wait in its own send buffer; no report is lost.

use std::time::Duration;

use tokio::time::Instant;

/// Written messages in one go: a node with a thousand instances says hello.
const BURST: f64 = 1000.0;
/// And in each second after that.
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

    /// Takes one; answers how long the sender has to wait before its next message is read.
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
    fn hello_of_many_instances_is_not_delayed_and_flood_is() {
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
