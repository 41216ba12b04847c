//! The only place of the host that asks what time it is.
//!
//! There are two answers. The wall clock is what people read and what is stored; it is set back and
//! forth. The steady clock only measures durations within one run: whatever is kept in memory until
//! it is old (throttles, log-ins under way, silence of a node) goes by that one.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The system's clocks, or a test's.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    Manual(Arc<ManualClock>),
}

impl Clock {
    /// Milliseconds since 1970, by the wall clock.
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
            Self::Manual(clock) => clock.wall_ms.load(Ordering::SeqCst),
        }
    }

    /// Milliseconds by the clock that is never set.
    pub fn steady_ms(&self) -> i64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Self::System => i64::try_from(START.elapsed().as_millis()).unwrap_or(i64::MAX),
            Self::Manual(clock) => clock.steady_ms.load(Ordering::SeqCst),
        }
    }
}

/// Clocks that stand still until a test moves them.
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    steady_ms: AtomicI64,
}

impl ManualClock {
    pub fn at(now_ms: i64) -> Self {
        Self { wall_ms: AtomicI64::new(now_ms), steady_ms: AtomicI64::new(0) }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
        self.steady_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the wall clock, as a person or NTP does, without any time passing.
    pub fn step(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

/// ISO 8601 with zone, as the API writes times.
pub(crate) fn iso(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|time| time.to_string()).unwrap_or_default()
}
