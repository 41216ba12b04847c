//! The host's clocks, and the only place that reads the time.
//!
//! There are two. The wall clock is for display and storage; it may be set back and forth. The
//! steady clock measures durations within one run: values in memory that expire by age (throttles,
//! log-ins in progress, silence of a node) use it.

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
    /// Returns milliseconds since 1970, by the wall clock.
    pub fn now_ms(&self) -> i64 {
        match self {
            Self::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
            Self::Manual(clock) => clock.wall_ms.load(Ordering::SeqCst),
        }
    }

    /// Returns milliseconds by the steady clock, which is never set.
    pub fn steady_ms(&self) -> i64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Self::System => i64::try_from(START.elapsed().as_millis()).unwrap_or(i64::MAX),
            Self::Manual(clock) => clock.steady_ms.load(Ordering::SeqCst),
        }
    }
}

/// Clocks that only a test advances.
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    steady_ms: AtomicI64,
}

impl ManualClock {
    pub fn at(now_ms: i64) -> Self {
        Self { wall_ms: AtomicI64::new(now_ms), steady_ms: AtomicI64::new(0) }
    }

    /// Advances both clocks.
    pub fn advance(&self, by: Duration) {
        let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
        self.steady_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Sets the wall clock, as an operator or NTP does, without any time passing.
    pub fn step(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

/// Formats a time as the API does: ISO 8601 with zone.
pub(crate) fn iso(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|time| time.to_string()).unwrap_or_default()
}
