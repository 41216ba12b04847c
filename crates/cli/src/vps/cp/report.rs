//! What was copied, while it happens and in the end.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::error::CommandError;
use crate::ui::{Output, Transfer};

/// More failures than this are counted, not kept.
const MAX_KEPT: usize = 1000;
const EVERY: Duration = Duration::from_millis(100);

/// Counters that all stages share.
#[derive(Debug)]
pub struct Report {
    pub files: AtomicU64,
    pub directories: AtomicU64,
    pub links: AtomicU64,
    /// Files that were there.
    pub skipped: AtomicU64,
    /// Files that went on where an earlier attempt had stopped.
    pub resumed: AtomicU64,
    /// Moved this time.
    pub bytes: AtomicU64,
    /// That need not be moved.
    pub spared: AtomicU64,
    /// Of all files, as far as they are known.
    pub total: AtomicU64,
    failed: Mutex<Failures>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    /// Of them those that no attempt would copy.
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
    /// One of several things could not be copied; the others go on.
    pub fn fail(&self, path: impl Into<String>, error: impl Into<String>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count += 1;
        if failed.kept.len() < MAX_KEPT {
            failed.kept.push(FailedItem { path: path.into(), error: error.into() });
        }
    }

    /// Something of a kind that is never copied. The copy is whole without it.
    pub fn leave_out(&self, path: impl Into<String>, why: impl std::fmt::Display) {
        self.fail(path, format!("{why}: left out"));
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).left_out += 1;
    }

    /// Whether all is there that can be copied.
    pub fn is_whole(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count == failed.left_out
    }

    /// Shows how far it is, for as long as it is polled.
    pub async fn show(&self, out: Output, what: &str) {
        let Some(transfer) = Transfer::new(out, what) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(EVERY).await;
            transfer.show(get(&self.spared), get(&self.bytes), get(&self.total));
        }
    }

    /// What became of it. `whole`: it came to its end.
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
                reason = "a rate for people"
            )]
            let rate = (bytes as f64 / seconds) as u64;
            text.push_str(&format!(", {}/s", HumanBytes(rate)));
        }
        let was = |count| if count == 1 { "was" } else { "were" };
        match get(&self.skipped) {
            0 => {}
            count => {
                let files = counted(count, "file");
                text.push_str(&format!("; {files} {} there already", was(count)));
            }
        }
        match get(&self.resumed) {
            0 => {}
            count => {
                let files = counted(count, "file");
                text.push_str(&format!("; {files} went on where an earlier copy stopped"));
            }
        }
        text
    }

    /// The command's end, when all that could be done is done.
    pub fn verdict(&self) -> Result<(), CommandError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match failed.count {
            0 => Ok(()),
            1 => Err(CommandError::request("one thing was not copied")),
            count => Err(CommandError::request(format!("{count} things were not copied"))),
        }
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}
