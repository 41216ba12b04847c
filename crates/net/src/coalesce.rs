//! Coalesces reads: the reading thread sleeps a moment so that more bytes arrive at once.
//!
//! A transfer arrives in packets. Waking up for each costs more than handling it, and takes the processor from the
//! sender of the next one. So a reader that has drained a transfer waits a little for more of it.

use std::thread;
use std::time::Duration;

/// A read of at least this many bytes is part of a transfer, not typed input.
const BULK: usize = 16 * 1024;
/// Measured: longer gains nothing, and at 400 MB/s it is what comes in two packets.
const PAUSE: Duration = Duration::from_micros(100);

#[derive(Debug, Default)]
pub(crate) struct Coalesce {
    has_read_bulk: bool,
}

impl Coalesce {
    /// Sleeps for [`PAUSE`] if the last read drained a transfer. Blocks the thread.
    pub fn before_read(&mut self) {
        if std::mem::take(&mut self.has_read_bulk) {
            thread::sleep(PAUSE);
        }
    }

    /// Records a read of `count` bytes into `space`. A read that filled its space left bytes behind: no pause then.
    pub fn after_read(&mut self, count: usize, space: usize) {
        self.has_read_bulk = count >= BULK && count < space;
    }
}
