//! Escape sequences as in ssh: a tilde at the beginning of a line and one more key.

use bytes::Bytes;

/// The action of an escape sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Detach,
    HangUp,
}

#[derive(Debug)]
pub struct Keys {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LineStart,
    Tilde,
    Inside,
}

impl Default for Keys {
    fn default() -> Self {
        Self { state: State::LineStart }
    }
}

impl Keys {
    /// Splits the input into bytes for the VPS and an action. Input after an action is not read.
    pub fn read(&mut self, typed: &[u8]) -> (Bytes, Option<Command>) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            self.state = match (self.state, byte) {
                (State::LineStart, b'~') => {
                    // Kept back until it is known what it means.
                    self.state = State::Tilde;
                    continue;
                }
                (State::Tilde, b'd') => return (passed.into(), Some(Command::Detach)),
                (State::Tilde, b'.') => return (passed.into(), Some(Command::HangUp)),
                (State::Tilde, b'~') => State::Inside,
                (State::Tilde, _) => {
                    passed.push(b'~');
                    after(*byte)
                }
                (State::LineStart | State::Inside, _) => after(*byte),
            };
            passed.push(*byte);
        }
        (passed.into(), None)
    }
}

fn after(byte: u8) -> State {
    if matches!(byte, b'\r' | b'\n') { State::LineStart } else { State::Inside }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&str]) -> (String, Option<Command>) {
        let mut keys = Keys::default();
        let mut all = String::new();
        for piece in pieces {
            let (passed, command) = keys.read(piece.as_bytes());
            all.push_str(std::str::from_utf8(&passed).unwrap());
            if command.is_some() {
                return (all, command);
            }
        }
        (all, None)
    }

    #[test]
    fn tilde_escapes_only_at_line_start() {
        assert_eq!(read(&["~d"]), (String::new(), Some(Command::Detach)));
        assert_eq!(read(&["ls\r", "~", ".", "x"]), ("ls\r".into(), Some(Command::HangUp)));
        assert_eq!(read(&["cd ~/x~.\r"]), ("cd ~/x~.\r".into(), None));
        assert_eq!(read(&["~~.\r"]), ("~.\r".into(), None));
        assert_eq!(read(&["~x", "~."]), ("~x~.".into(), None));
        assert_eq!(read(&["~\r", "~d"]), ("~\r".into(), Some(Command::Detach)));
    }

    proptest! {
        #[test]
        fn without_a_tilde_everything_passes(typed in "[^~]{0,40}") {
            prop_assert_eq!(read(&[&typed]), (typed, None));
        }
    }
}
