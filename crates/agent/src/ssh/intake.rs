//! How much a connection may take in ahead of the programs it is for.
//!
//! The SSH library grants the client new window as soon as data arrives, not when somebody has consumed it, and reads
//! data and the client's grants for our own output from one stream. So a program that writes while it reads
//! (`ssh x cat`) locks up where a full queue simply stops the reading: the grant its output waits for is behind the
//! data that nobody takes. Two measures keep that from happening, with bounded memory:
//!
//! * beyond [`SOFT`] nothing more is read, unless an output waits for a grant; then up to [`HARD`];
//! * the more is queued, the smaller the window granted, so that little data can stand before a grant.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Waker};

/// Enough to keep a program busy between two turns of the connection.
const SOFT: usize = 2 * 1024 * 1024;
/// Never reached unless a program writes more than thirty times what it reads.
const HARD: usize = 32 * 1024 * 1024;
/// Granted while programs keep up: 80 MB/s at 50 ms.
pub(super) const WINDOW: u32 = 4 * 1024 * 1024;
/// Granted while they do not. OpenSSH's own window is 2 MiB, thirty-two times this.
const SMALL_WINDOW: u32 = 64 * 1024;

/// The connection's account of bytes received and not yet consumed.
#[derive(Debug, Default)]
pub(super) struct Intake {
    queued: AtomicUsize,
    starved: AtomicUsize,
    paused: Mutex<Option<Waker>>,
}

/// An output that waits for the client's grant, for as long as it waits.
#[derive(Debug)]
pub(super) struct Starved<'a>(&'a Intake);

impl Intake {
    pub fn add(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn remove(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.wake();
    }

    /// Whether to leave what has arrived in the socket; the task is woken when that changes.
    pub fn pauses(&self, cx: &Context<'_>) -> bool {
        if !self.is_full() {
            return false;
        }
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        *paused = Some(cx.waker().clone());
        true
    }

    pub fn is_full(&self) -> bool {
        let queued = self.queued.load(Ordering::Relaxed);
        let starved = self.starved.load(Ordering::Relaxed) > 0;
        queued >= if starved { HARD } else { SOFT }
    }

    /// The window to grant from now on.
    pub fn window(&self) -> u32 {
        if self.queued.load(Ordering::Relaxed) < SOFT / 4 { WINDOW } else { SMALL_WINDOW }
    }

    pub fn starve(&self) -> Starved<'_> {
        self.starved.fetch_add(1, Ordering::Relaxed);
        self.wake();
        Starved(self)
    }

    fn wake(&self) {
        if !self.is_full()
            && let Some(waker) = self.paused.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            waker.wake();
        }
    }
}

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        self.0.starved.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_soft_bound_and_at_the_hard_one_while_an_output_waits() {
        let intake = Intake::default();
        assert_eq!(intake.window(), WINDOW);
        intake.add(SOFT);
        assert!(intake.is_full());
        assert_eq!(intake.window(), SMALL_WINDOW);
        {
            let _starved = intake.starve();
            assert!(!intake.is_full());
            intake.add(HARD - SOFT);
            assert!(intake.is_full());
        }
        intake.remove(HARD - SOFT);
        assert!(intake.is_full());
        intake.remove(1);
        assert!(!intake.is_full());
    }
}
