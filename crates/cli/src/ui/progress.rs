//! Progress on standard error: a spinner at a terminal, otherwise a line for each new step.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;

/// The progress of a running action.
#[derive(Debug)]
pub struct Progress {
    out: Output,
    bar: Option<ProgressBar>,
    last: Option<String>,
}

impl Progress {
    pub fn new(out: Output) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { out, bar, last: None }
    }

    /// Creates progress without a spinner, for commands that print lines as they arrive.
    pub fn quiet(out: Output) -> Self {
        Self { out, bar: None, last: None }
    }

    /// Displays the step, and its percentage if it is known.
    pub fn show(&mut self, step: &str, percent: Option<u8>) {
        // The text comes from the host, and may come from a VPS.
        let step = &super::one_line(&super::printable(step));
        let new = self.last.as_deref() != Some(step);
        match &self.bar {
            Some(bar) => {
                bar.set_style(style(percent.is_some()));
                if let Some(percent) = percent {
                    bar.set_length(100);
                    bar.set_position(u64::from(percent.min(100)));
                }
                bar.set_message(step.to_owned());
            }
            None if new => self.out.note(step),
            None => {}
        }
        if new {
            self.last = Some(step.to_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(measured: bool) -> ProgressStyle {
    let template = if measured {
        "{spinner} {wide_msg} {bar:20} {percent:>3}% {elapsed:>4}"
    } else {
        "{spinner} {wide_msg} {elapsed:>4}"
    };
    // The templates are constant and valid; a plain spinner is the fallback should that change.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// The progress of a transfer, at a terminal.
#[derive(Debug)]
pub struct Transfer {
    bar: ProgressBar,
}

impl Transfer {
    /// Creates the display; `None` without a terminal.
    pub fn new(out: Output, what: &str) -> Option<Self> {
        if out.json || !std::io::stderr().is_terminal() {
            return None;
        }
        let bar = ProgressBar::no_length().with_message(super::one_line(&super::printable(what)));
        Some(Self { bar })
    }

    /// Displays byte counts: `spared` needed no transfer; a `total` of zero means unknown.
    pub fn show(&self, spared: u64, moved: u64, total: u64) {
        let known = total > 0;
        let template = if known {
            "{wide_msg} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>12} {bar:12} ETA {eta}"
        } else {
            "{wide_msg} {bytes:>11} {bytes_per_sec:>12} {elapsed:>4}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        if known {
            self.bar.set_length(total.saturating_sub(spared).max(moved));
        }
        self.bar.set_position(moved);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
