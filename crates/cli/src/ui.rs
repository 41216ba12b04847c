//! How commands talk. Foreign text (of the host, a VPS, a registry) passes here, so whatever is
//! written as text is freed of control characters, and no line of it can pass for one of ours.

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

use crate::error::{CommandError, Kind};
use crate::stdout;

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
        Self { json, colour: !unwanted && stdout::is_terminal() }
    }

    /// One line of data. What keeps it from being written ends the command: see [`stdout`].
    pub fn line(self, text: impl AsRef<str>) {
        self.styled(printable(text.as_ref()).replace(['\n', '\t'], " "));
    }

    /// As [`Self::line`], for text that is already free of control characters and may contain colors.
    pub fn styled(self, text: impl AsRef<str>) {
        self.raw(format!("{}\n", text.as_ref()).as_bytes());
    }

    /// Data, exactly these bytes.
    pub fn raw(self, bytes: &[u8]) {
        // It is remembered there, and ends the command.
        let _ = stdout::write(bytes);
    }

    /// A part of a long text of the host: these bytes, but for what a terminal would obey.
    pub fn block(self, bytes: &[u8]) {
        if stdout::is_terminal() {
            self.raw(printable(&String::from_utf8_lossy(bytes)).as_bytes());
        } else {
            self.raw(bytes);
        }
    }

    /// The API's object.
    pub fn json(self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.styled(terminal_safe(&text)),
            Err(error) => self.note(format!("error: cannot write JSON: {error}")),
        }
    }

    /// The API's object on one line, where more follow.
    pub fn json_line(self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.styled(terminal_safe(&text)),
            Err(error) => self.note(format!("error: cannot write JSON: {error}")),
        }
    }

    /// Prints a message on stderr. Lines after the first are indented, so that foreign text forges no further message.
    pub fn note(self, text: impl AsRef<str>) {
        let text = printable(text.as_ref());
        let mut lines = text.trim_end().lines();
        let mut whole = lines.next().unwrap_or_default().to_owned();
        for line in lines {
            whole.push_str("\n  ");
            whole.push_str(line.trim_start());
        }
        let _ = writeln!(io::stderr(), "{whole}");
    }

    pub fn hint(self, text: impl AsRef<str>) {
        self.note(format!("hint: {}", text.as_ref()));
    }

    pub fn failure(self, failure: &CommandError) {
        if matches!(failure.kind, Kind::Reported | Kind::Program(_) | Kind::ReaderGone) {
            return;
        }
        self.note(format!("error: {}", failure.message.trim_end()));
        if let Some(hint) = &failure.hint {
            self.hint(hint);
        }
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
    pub fn confirm(self, question: &str, flag: &str) -> Result<bool, CommandError> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(CommandError::usage(format!("{question} There is no terminal to ask at"))
                .hint(format!("say yes beforehand with {flag}")));
        }
        let mut stderr = io::stderr();
        let _ = write!(stderr, "{} [y/N] ", one_line(&printable(question)));
        let _ = stderr.flush();
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| CommandError::request(format!("cannot read the answer: {error}")))?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Text of the cluster, in which an instance may have put whatever it likes: it must not move
/// the cursor, reorder what stands beside it, or worse.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if moves(c) && c != '\n' && c != '\t' { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// Control characters, those of two bytes (C1) too, line separators, and what turns the direction
/// of writing.
fn moves(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON without what a terminal would obey: the library escapes only what JSON forbids. Outside of
/// strings there is none of it.
fn terminal_safe(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if moves(c) && c != '\n' => safe.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => safe.push(c),
        }
    }
    safe
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_text_moves_no_cursor_and_turns_no_line() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}1mc\rd\u{202e}e"), "a [2Jb 1mc d e");
        assert_eq!(printable("one\n\ttwo \u{e9}\u{1f600}"), "one\n\ttwo \u{e9}\u{1f600}");
    }

    proptest! {
        #[test]
        fn json_for_a_terminal_means_the_same(text in any::<String>()) {
            let json = serde_json::to_string_pretty(&[&text]).unwrap();
            let safe = terminal_safe(&json);
            prop_assert!(!safe.chars().any(|c| moves(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [text]);
        }
    }
}
