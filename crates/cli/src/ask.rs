//! Prompts for text and for hidden passwords.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use kohakuriver_api::Secret;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};

use crate::error::CommandError;
use crate::ui::printable;

/// The longest password; a longer line is a file that was piped in by mistake.
const LONGEST: usize = 4096;

/// Asks for a line of text, which is echoed. `flag` is the option that replaces the prompt.
pub fn line(question: &str, flag: &str) -> Result<String, CommandError> {
    at_terminal(question, flag)?;
    show(&format!("{question}: "));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer).map_err(|error| unreadable(&error))?;
    if read == 0 {
        show("\n");
        return Err(CommandError::interrupted("nothing was answered"));
    }
    Ok(answer.trim().to_owned())
}

/// Asks for a password, which is not echoed.
pub fn secret(question: &str, flag: &str) -> Result<Secret, CommandError> {
    at_terminal(question, flag)?;
    show(&format!("{question}: "));
    let answer = {
        let _hidden = Hidden::enter().map_err(|error| unreadable(&error))?;
        read_hidden(&mut io::stdin().lock())
    };
    // What ended the line was not shown either.
    show("\n");
    answer
}

/// Asks for a new password, typed twice.
pub fn new_secret(question: &str, flag: &str) -> Result<Secret, CommandError> {
    let first = secret(question, flag)?;
    if secret("the same again", flag)? != first {
        return Err(CommandError::usage("the two were not the same").hint("try again"));
    }
    Ok(first)
}

/// Reads the first line of standard input, for scripts.
pub fn secret_from_stdin() -> Result<Secret, CommandError> {
    secret_line(&mut io::stdin().lock())
}

/// Reads the next line of an input.
pub fn secret_line(input: &mut impl BufRead) -> Result<Secret, CommandError> {
    let mut text = Vec::new();
    let mut input = input.take(LONGEST as u64 + 1);
    input.read_until(b'\n', &mut text).map_err(|error| unreadable(&error))?;
    let text = String::from_utf8(text).map_err(|_| CommandError::usage("that is no text"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    match text.len() {
        0 => Err(CommandError::usage("standard input has no secret, or an empty one")),
        1..LONGEST => Ok(Secret(text.to_owned())),
        _ => Err(CommandError::usage("that line of standard input is too long for a secret")),
    }
}

fn at_terminal(question: &str, flag: &str) -> Result<(), CommandError> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    let question = question.to_lowercase();
    Err(CommandError::usage(format!("there is no terminal to ask at for: {question}"))
        .hint(format!("give it with {flag}")))
}

fn show(text: &str) {
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{}", printable(text));
    let _ = stderr.flush();
}

fn unreadable(error: &io::Error) -> CommandError {
    CommandError::request(format!("cannot read the answer: {error}"))
}

/// A terminal without echo, signals and line editing until it is dropped. Ctrl-C arrives as a byte,
/// so that it cannot end the process while echo is off.
#[derive(Debug)]
struct Hidden {
    before: Termios,
}

impl Hidden {
    fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_flags &= !(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &hidden)?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

fn read_hidden(input: &mut impl Read) -> Result<Secret, CommandError> {
    let mut typed: Vec<u8> = Vec::new();
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(0) => return Err(CommandError::interrupted("nothing was answered")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(&error)),
        }
        match byte[0] {
            b'\r' | b'\n' => break,
            // Ctrl-C and Ctrl-\, and Ctrl-D where nothing is typed.
            0x03 | 0x1c => return Err(CommandError::interrupted("nothing was done")),
            0x04 if typed.is_empty() => {
                return Err(CommandError::interrupted("nothing was answered"));
            }
            0x04 => break,
            0x08 | 0x7f => remove_last_char(&mut typed),
            // Ctrl-U.
            0x15 => typed.clear(),
            other if typed.len() < LONGEST => typed.push(other),
            _ => return Err(CommandError::usage("that is too long for a secret")),
        }
    }
    String::from_utf8(typed).map(Secret).map_err(|_| CommandError::usage("that is no text"))
}

/// Removes the last character, of any number of bytes.
fn remove_last_char(typed: &mut Vec<u8>) {
    while let Some(byte) = typed.pop() {
        if byte & 0b1100_0000 != 0b1000_0000 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn typed(text: &str) -> Result<String, Kind> {
        read_hidden(&mut text.as_bytes()).map(|secret| secret.0).map_err(|failure| failure.kind)
    }

    #[test]
    fn password_editing_keys_are_not_echoed() {
        assert_eq!(typed("hunter2\r"), Ok("hunter2".to_owned()));
        assert_eq!(typed("hux\u{7f}nter2\nrest"), Ok("hunter2".to_owned()));
        assert_eq!(typed("h\u{fc}\u{7f}unter2\n"), Ok("hunter2".to_owned()));
        assert_eq!(typed("wrong\u{15}hunter2\n"), Ok("hunter2".to_owned()));
        assert_eq!(typed("\u{7f}a\n"), Ok("a".to_owned()));
    }

    #[test]
    fn a_script_says_one_secret_to_a_line() {
        let mut input = "old one\r\nnew\n".as_bytes();
        assert_eq!(secret_line(&mut input).unwrap().0, "old one");
        assert_eq!(secret_line(&mut input).unwrap().0, "new");
        assert!(secret_line(&mut input).is_err());
        assert!(secret_line(&mut "x".repeat(5000).as_bytes()).is_err());
    }

    #[test]
    fn ctrl_c_and_end_of_input_end_the_prompt() {
        assert_eq!(typed("hun\u{3}"), Err(Kind::Interrupted));
        assert_eq!(typed("\u{4}"), Err(Kind::Interrupted));
        assert_eq!(typed("hun"), Err(Kind::Interrupted));
        assert_eq!(typed(&"x".repeat(5000)), Err(Kind::Usage));
    }
}
