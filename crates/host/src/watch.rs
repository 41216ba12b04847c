//! Waking those who wait for a change. One counter for everything: a cluster changes a few times
//! a second at most, and a waiter that wakes for somebody else's change reads one row.

use tokio::sync::watch;

/// Tells waiters that something changed.
#[derive(Debug)]
pub struct Changes {
    counter: watch::Sender<u64>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { counter: watch::Sender::new(0) }
    }
}

impl Changes {
    pub fn notify(&self) {
        self.counter.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Subscribe before reading the state, so that no change falls between the two.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.counter.subscribe()
    }
}
