//! Letting bytes gather, while the thread that reads them sleeps a moment.
//!
//! A transfer comes in packets. To be woken for each costs more than to handle it, and takes the processor from
//! whoever sends the next one. So whoever has read all there was of a transfer waits a little for more of it.

use std::thread;
use std::time::Duration;

/// So much at once is a transfer, not somebody's typing.
const BULK: usize = 16 * 1024;
/// Measured: longer gains nothing, and at 400 MB/s it is what comes in two packets.
const PAUSE: Duration = Duration::from_micros(100);

#[derive(Debug, Default)]
pub(crate) struct Coalesce {
    has_read_bulk: bool,
}

impl Coalesce {
    /// Blocks the thread.
    pub fn before_read(&mut self) {
        if std::mem::take(&mut self.has_read_bulk) {
            thread::sleep(PAUSE);
        }
    }

    /// What has filled its `space` left something to read.
    pub fn after_read(&mut self, count: usize, space: usize) {
        self.has_read_bulk = count >= BULK && count < space;
    }
}
