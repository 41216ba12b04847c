//! Flow control of one jump. The window grows as the instance receives, so a stalled instance holds
//! little of the host's memory, and a fast one reaches the speed of the line.

use crate::limits::{Bytes, HeldBytes};

/// The initial window: the bytes a client may send before any are passed on.
pub const FIRST_WINDOW: u32 = 128 * 1024;
/// The largest window: 40 MB/s at 50 ms.
pub const MAX_WINDOW: u32 = 2 * 1024 * 1024;

/// The bytes that a client may send on a channel before more are passed on.
#[derive(Debug)]
pub struct Window {
    size: usize,
    /// Passed on, and not yet granted again.
    owed: usize,
    waiting: Bytes,
    /// The bytes that the window has grown by.
    held: Vec<HeldBytes>,
}

impl Window {
    pub fn new(waiting: Bytes) -> Self {
        Self { size: FIRST_WINDOW as usize, owed: 0, waiting, held: Vec::new() }
    }

    /// Counts bytes that were passed on, and returns the number to grant now: half a window at
    /// once, so that not every packet causes a message. The window doubles while the account has
    /// bytes left.
    pub fn passed_on(&mut self, bytes: usize) -> Option<u32> {
        self.owed += bytes;
        if self.owed < self.size / 2 {
            return None;
        }
        let mut grant = std::mem::take(&mut self.owed);
        let growth = self.size.min(MAX_WINDOW as usize - self.size);
        if growth > 0
            && let Some(held) = self.waiting.try_hold(growth)
        {
            self.held.push(held);
            self.size += growth;
            grant += growth;
        }
        Some(u32::try_from(grant).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::UserId;

    use super::*;
    use crate::limits::{ByteLimit, Holder};

    #[test]
    fn window_grows_with_passed_on_bytes_up_to_its_bounds() {
        let limit = ByteLimit::new(8 * MAX_WINDOW as usize, MAX_WINDOW as usize);
        let mut first = Window::new(limit.of(Holder::Account(UserId(1))));
        assert_eq!(first.passed_on(FIRST_WINDOW as usize / 2 - 1), None, "not for every packet");
        // Granted: the bytes passed on, and as many again while it grows.
        assert_eq!(first.passed_on(1), Some(FIRST_WINDOW / 2 + FIRST_WINDOW));
        let mut allowed = 2 * FIRST_WINDOW as usize;
        for _ in 0..100 {
            let passed = allowed / 2;
            allowed -= passed;
            allowed += first.passed_on(passed).map_or(0, |grant| grant as usize);
            assert!(allowed <= MAX_WINDOW as usize);
        }
        assert_eq!(first.size, MAX_WINDOW as usize);
        // The account's share is nearly used up, and less than another window is left.
        let mut second = Window::new(limit.of(Holder::Account(UserId(1))));
        assert_eq!(second.passed_on(FIRST_WINDOW as usize), Some(2 * FIRST_WINDOW));
        assert_eq!(second.passed_on(FIRST_WINDOW as usize), Some(FIRST_WINDOW));
        let mut other = Window::new(limit.of(Holder::Account(UserId(2))));
        assert_eq!(other.passed_on(FIRST_WINDOW as usize), Some(2 * FIRST_WINDOW));
    }
}
