//! Wakes waiters for changes. One counter covers everything: a cluster changes a few times a second
//! at most, and a waiter that wakes for an unrelated change reads one row.

use tokio::sync::watch;

/// Notifies waiters of changes.
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

    /// Subscribes to changes. Call before reading the state, so that no change is missed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.counter.subscribe()
    }
}
