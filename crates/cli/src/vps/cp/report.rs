//! Progress and result of a copy.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::error::CommandError;
use crate::ui::{Output, Transfer};

/// Failures beyond this number are counted but not retained.
const MAX_KEPT: usize = 1000;
const EVERY: Duration = Duration::from_millis(100);

/// Counters shared by all stages.
#[derive(Debug)]
pub struct Report {
    pub files: AtomicU64,
    pub directories: AtomicU64,
    pub links: AtomicU64,
    /// Files that the target had already.
    pub skipped: AtomicU64,
    /// Files resumed from an earlier attempt.
    pub resumed: AtomicU64,
    /// Bytes transferred this time.
    pub bytes: AtomicU64,
    /// Bytes that needed no transfer.
    pub spared: AtomicU64,
    /// Bytes of all files listed so far.
    pub total: AtomicU64,
    failed: Mutex<Failures>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    /// The failures that another attempt would repeat.
    left_out: u64,
    kept: Vec<FailedItem>,
}

#[derive(Clone, Debug, Serialize)]
struct FailedItem {
    path: String,
    error: String,
}

#[derive(Debug, Serialize)]
struct Summary {
    files: u64,
    directories: u64,
    symlinks: u64,
    skipped: u64,
    resumed: u64,
    bytes: u64,
    seconds: f64,
    failed: Vec<FailedItem>,
}

impl Default for Report {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            files: zero(),
            directories: zero(),
            links: zero(),
            skipped: zero(),
            resumed: zero(),
            bytes: zero(),
            spared: zero(),
            total: zero(),
            failed: Mutex::default(),
            began: Instant::now(),
        }
    }
}

pub fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Report {
    /// Records an item that could not be copied; the copy continues.
    pub fn fail(&self, path: impl Into<String>, error: impl Into<String>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count += 1;
        if failed.kept.len() < MAX_KEPT {
            failed.kept.push(FailedItem { path: path.into(), error: error.into() });
        }
    }

    /// Records an item of a kind that is never copied; the copy is complete without it.
    pub fn leave_out(&self, path: impl Into<String>, why: impl std::fmt::Display) {
        self.fail(path, format!("{why}: skipped"));
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).left_out += 1;
    }

    /// Returns whether every item that can be copied was copied.
    pub fn is_whole(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count == failed.left_out
    }

    /// Displays progress for as long as it is polled.
    pub async fn show(&self, out: Output, what: &str) {
        let Some(transfer) = Transfer::new(out, what) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(EVERY).await;
            transfer.show(get(&self.spared), get(&self.bytes), get(&self.total));
        }
    }

    /// Prints the result. `whole` says that the copy ran to its end.
    pub fn summary(&self, out: Output, whole: bool) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = self.began.elapsed().as_secs_f64();
        if out.json {
            if whole {
                out.json(&Summary {
                    files: get(&self.files),
                    directories: get(&self.directories),
                    symlinks: get(&self.links),
                    skipped: get(&self.skipped),
                    resumed: get(&self.resumed),
                    bytes: get(&self.bytes),
                    seconds,
                    failed: failed.kept.clone(),
                });
            }
            return;
        }
        for item in &failed.kept {
            out.note(format!("error: {}", item.error));
        }
        let moved = get(&self.files) + get(&self.directories) + get(&self.links);
        if !whole && moved == 0 && get(&self.skipped) == 0 {
            return;
        }
        if whole || std::io::stderr().is_terminal() {
            out.note(self.sentence(seconds));
        }
    }

    fn sentence(&self, seconds: f64) -> String {
        let (files, bytes) = (get(&self.files), get(&self.bytes));
        let mut text =
            format!("{} copied: {} in {seconds:.1} s", counted(files, "file"), HumanBytes(bytes));
        if seconds > 0.05 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "the rate is only displayed"
            )]
            let rate = (bytes as f64 / seconds) as u64;
            text.push_str(&format!(", {}/s", HumanBytes(rate)));
        }
        let was = |count| if count == 1 { "was" } else { "were" };
        match get(&self.skipped) {
            0 => {}
            count => {
                let files = counted(count, "file");
                text.push_str(&format!("; {files} {} already present", was(count)));
            }
        }
        match get(&self.resumed) {
            0 => {}
            count => {
                let files = counted(count, "file");
                text.push_str(&format!("; {files} resumed"));
            }
        }
        text
    }

    /// Returns an error if any item was not copied.
    pub fn verdict(&self) -> Result<(), CommandError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match failed.count {
            0 => Ok(()),
            1 => Err(CommandError::request("1 item was not copied")),
            count => Err(CommandError::request(format!("{count} items were not copied"))),
        }
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}
