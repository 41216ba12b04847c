//! Terminal output of commands. Text from the host, a VPS or a registry passes here, so output is
//! stripped of control characters, and no line of foreign text can imitate a line of this program.

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

/// The output of a command: data to standard output, everything else to standard error.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    /// Whether standard output is a terminal that takes colors.
    pub colour: bool,
}

/// The meaning of a word, displayed as a color.
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

    /// Writes a line of data. A write error ends the command: see [`stdout`].
    pub fn line(self, text: impl AsRef<str>) {
        self.styled(printable(text.as_ref()).replace(['\n', '\t'], " "));
    }

    /// Writes a line like [`Self::line`], from text that has no control characters but may have colors.
    pub fn styled(self, text: impl AsRef<str>) {
        self.raw(format!("{}\n", text.as_ref()).as_bytes());
    }

    /// Writes data unchanged.
    pub fn raw(self, bytes: &[u8]) {
        // The module `stdout` records the error, which ends the command.
        let _ = stdout::write(bytes);
    }

    /// Writes a part of a long text of the host without its terminal control characters.
    pub fn block(self, bytes: &[u8]) {
        if stdout::is_terminal() {
            self.raw(printable(&String::from_utf8_lossy(bytes)).as_bytes());
        } else {
            self.raw(bytes);
        }
    }

    /// Writes an API object as JSON.
    pub fn json(self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.styled(terminal_safe(&text)),
            Err(error) => self.note(format!("error: cannot write JSON: {error}")),
        }
    }

    /// Writes an API object as one line of JSON, in a series of them.
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

    /// Colors a word, if colors are enabled.
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

    /// Asks for confirmation, y or N. Fails without a terminal, unless `flag` is given on the command line.
    pub fn confirm(self, question: &str, flag: &str) -> Result<bool, CommandError> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(CommandError::usage(format!(
                "{question} There is no terminal to confirm at"
            ))
            .hint(format!("confirm with {flag}")));
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

/// Strips control characters from the cluster's text, which an instance may have chosen, so that it
/// cannot move the cursor or reorder adjacent text.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if moves(c) && c != '\n' && c != '\t' { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// Returns whether the character is a control character (C0 or C1), a line separator or a change of
/// writing direction.
fn moves(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes terminal control characters in JSON: the library escapes only those that JSON forbids.
/// They occur in strings only.
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

/// Joins text into one line, for a table's cell or the rest of a line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the color of a status.
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
    fn foreign_text_is_stripped_of_control_characters() {
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
