//! Stops work on disks between any two changes of files, as a crash does, for tests.
//!
//! A test says how many more changes there are; the next one is refused, and so is each that
//! follows it, also those that would clear up: a process that has died does nothing any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Counts changes of files down. By itself it refuses none.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<Counter>);

#[derive(Debug)]
struct Counter(AtomicI64);

impl Default for Counter {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MAX))
    }
}

impl Cut {
    /// Lets `changes` more pass and refuses those after them.
    pub fn after(&self, changes: u32) {
        self.0.0.store(i64::from(changes), Ordering::Relaxed);
    }

    /// Refuses nothing from now on, and tells whether anything was refused.
    pub fn lift(&self) -> bool {
        self.0.0.swap(i64::MAX, Ordering::Relaxed) < 0
    }

    /// Before a change of files.
    ///
    /// # Errors
    /// The test has cut it off here.
    pub fn point(&self) -> io::Result<()> {
        if self.0.0.load(Ordering::Relaxed) == i64::MAX
            || self.0.0.fetch_sub(1, Ordering::Relaxed) > 0
        {
            return Ok(());
        }
        Err(io::Error::other("cut off by a test"))
    }
}
