//! The only place that writes to the terminal.

mod age;
mod panel;
mod progress;
mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub use age::{age, ago, ago_ms, at, until};
pub use panel::Panel;
pub use progress::{Progress, Transfer};
pub use table::{Fit, Grid};

use crate::failure::{Failure, Kind};

/// How a command talks: data to standard output, everything else to standard error.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    /// Standard output is a terminal and colours are welcome.
    pub colour: bool,
}

/// What a word means, in colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Quiet,
}

impl Output {
    pub fn new(json: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colour: !unwanted && io::stdout().is_terminal() }
    }

    /// Data. A reader that has gone away (`| head`) is no error.
    pub fn line(self, text: impl AsRef<str>) {
        let _ = writeln!(io::stdout(), "{}", text.as_ref());
    }

    /// Data, exactly these bytes.
    pub fn raw(self, bytes: &[u8]) {
        let _ = io::stdout().write_all(bytes);
    }

    /// The API's object.
    pub fn json(self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(error) => self.note(format!("error: cannot write JSON: {error}")),
        }
    }

    /// The API's object on one line, where more follow.
    pub fn json_line(self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(text),
            Err(error) => self.note(format!("error: cannot write JSON: {error}")),
        }
    }

    /// Talk.
    pub fn note(self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "{}", printable(text.as_ref()));
    }

    pub fn hint(self, text: impl AsRef<str>) {
        self.note(format!("hint: {}", text.as_ref()));
    }

    pub fn failure(self, failure: &Failure) {
        if matches!(failure.kind, Kind::Reported | Kind::Program(_)) {
            return;
        }
        self.note(format!("error: {}", failure.message.trim_end()));
        if let Some(hint) = &failure.hint {
            self.hint(hint);
        }
    }

    pub fn flush(self) {
        let _ = io::stdout().flush();
    }

    /// A word in its colour, where colours are on.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Asks y/N. Without a person to ask, the command has to be told beforehand.
    pub fn confirm(self, question: &str, flag: &str) -> Result<bool, Failure> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(format!("{question} There is no terminal to ask at"))
                .hint(format!("say yes beforehand with {flag}")));
        }
        let mut stderr = io::stderr();
        let _ = write!(stderr, "{question} [y/N] ");
        let _ = stderr.flush();
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| Failure::request(format!("cannot read the answer: {error}")))?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Text of the cluster, in which an instance may have put whatever it likes: it must not move
/// the cursor or worse.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' && c != '\t' { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// Text that has to be a table's cell, or the rest of a line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The colour of a VPS's status word.
pub fn status_tone(status: &str) -> Tone {
    match status {
        "running" | "online" => Tone::Good,
        "pending" | "pending_approval" | "assigning" | "paused" => Tone::Busy,
        "failed" | "killed" | "killed_oom" | "lost" | "rejected" | "offline" => Tone::Bad,
        "stopped" | "completed" => Tone::Quiet,
        _ => Tone::Plain,
    }
}
