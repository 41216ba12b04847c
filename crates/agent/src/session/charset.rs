//! Terminal features that programs use and the emulator does not model: line drawing, the scroll region.
//!
//! Curses programs without a UTF-8 locale draw their lines with the letters of another character
//! set. The emulator knows one set alone, so it is given the lines as characters of Unicode. The
//! sets and the region in use are remembered for a terminal that shows the screen later.

/// DEC Special Graphics, from 0x60 on.
const GRAPHICS: [char; 31] = [
    '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼', '⎺', '⎻', '─', '⎼',
    '⎽', '├', '┤', '┴', '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
];
const FIRST: u8 = 0x60;
/// Longer sequences are none of those that matter here.
const MOST_PARAMETERS: usize = 32;

const BELL: u8 = 0x07;
const SHIFT_OUT: u8 = 0x0e;
const SHIFT_IN: u8 = 0x0f;
const CANCEL: u8 = 0x18;
const SUBSTITUTE: u8 = 0x1a;
const ESCAPE: u8 = 0x1b;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sets {
    /// Whether G0 and G1 are line drawing.
    graphics: [bool; 2],
    /// Whether G1 is in use.
    shifted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    /// After ESC and a byte that one more byte belongs to.
    Intermediate,
    /// G0 or G1 is chosen.
    Designate(usize),
    Control,
    /// A text for the terminal, up to BEL or ESC \.
    Text,
}

/// Follows a program's output.
#[derive(Debug, Default)]
pub(super) struct Charsets {
    state: State,
    parameters: Vec<u8>,
    sets: Sets,
    saved: Sets,
    region: Option<Vec<u8>>,
}

impl Charsets {
    /// The output for an emulator without character sets.
    pub fn translate(&mut self, output: &[u8]) -> Vec<u8> {
        let mut translated = Vec::with_capacity(output.len());
        for byte in output {
            match self.graphic(*byte) {
                Some(graphic) => {
                    translated.extend_from_slice(graphic.encode_utf8(&mut [0; 4]).as_bytes());
                }
                None => translated.push(*byte),
            }
            self.follow(*byte);
        }
        translated
    }

    /// Returns the bytes that set this scroll region in a terminal that was reset. They move the cursor.
    pub fn region(&self) -> Vec<u8> {
        let bounds = self.region.as_deref();
        bounds.map_or_else(Vec::new, |bounds| [b"\x1b[", bounds, b"r"].concat())
    }

    /// Returns the bytes that set these character sets in a terminal that was reset.
    pub fn sets(&self) -> Vec<u8> {
        let [first, second] = self.sets.graphics;
        let mut sequence = Vec::new();
        for (needed, code) in
            [(first, &b"\x1b(0"[..]), (second, b"\x1b)0"), (self.sets.shifted, b"\x0e")]
        {
            if needed {
                sequence.extend_from_slice(code);
            }
        }
        sequence
    }

    /// The region is of the size that it was set in.
    pub fn resized(&mut self) {
        self.region = None;
    }

    fn graphic(&self, byte: u8) -> Option<char> {
        let is_drawing = self.sets.graphics[usize::from(self.sets.shifted)];
        if self.state != State::Ground || !is_drawing {
            return None;
        }
        GRAPHICS.get(usize::from(byte.checked_sub(FIRST)?)).copied()
    }

    fn follow(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (_, ESCAPE) => State::Escape,
            (_, CANCEL | SUBSTITUTE) => State::Ground,
            (State::Text, BELL) => State::Ground,
            (State::Text, _) => State::Text,
            (_, SHIFT_OUT | SHIFT_IN) => {
                self.sets.shifted = byte == SHIFT_OUT;
                self.state
            }
            // What else a control character does leaves sequences as they are.
            (state, 0..0x20) => state,
            (State::Ground, _) => State::Ground,
            (State::Escape, b'[') => {
                self.parameters.clear();
                State::Control
            }
            (State::Escape, b']' | b'P' | b'_' | b'^' | b'X') => State::Text,
            (State::Escape, b'(') => State::Designate(0),
            (State::Escape, b')') => State::Designate(1),
            (State::Escape | State::Intermediate, 0x20..0x30) => State::Intermediate,
            (State::Escape, final_byte) => {
                match final_byte {
                    b'7' => self.saved = self.sets,
                    b'8' => self.sets = self.saved,
                    b'c' => self.reset(),
                    _ => {}
                }
                State::Ground
            }
            (State::Intermediate, _) => State::Ground,
            (State::Designate(set), name) => {
                self.sets.graphics[set] = name == b'0';
                State::Ground
            }
            (State::Control, 0x40..0x7f) => {
                self.control(byte);
                State::Ground
            }
            (State::Control, _) => {
                if self.parameters.len() < MOST_PARAMETERS {
                    self.parameters.push(byte);
                }
                State::Control
            }
        };
    }

    fn control(&mut self, final_byte: u8) {
        let is_plain = self.parameters.iter().all(|byte| matches!(byte, b'0'..=b'9' | b';'));
        match final_byte {
            b'r' if is_plain => {
                let bounds = std::mem::take(&mut self.parameters);
                self.region = Some(bounds).filter(|bounds| !bounds.is_empty());
            }
            b'p' if self.parameters == b"!" => self.reset(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.sets, self.saved, self.region) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(output: &str) -> String {
        String::from_utf8(Charsets::default().translate(output.as_bytes())).unwrap()
    }

    #[test]
    fn letters_of_line_drawing_become_lines() {
        assert_eq!(shown("x\x1b(0lqk\x1b(Bq"), "x\x1b(0┌─┐\x1b(Bq");
        assert_eq!(shown("\x1b)0q\x0eqé\x0fq"), "\x1b)0q\x0e─é\x0fq");
        // Neither in sequences nor in titles.
        assert_eq!(shown("\x1b(0\x1b[1mq\x1b]0;q\x07q"), "\x1b(0\x1b[1m─\x1b]0;q\x07─");
        assert_eq!(shown("\x1b(0\x1b7\x1b(Bq\x1b8q\x1bcq"), "\x1b(0\x1b7\x1b(Bq\x1b8─\x1bcq");
    }

    #[test]
    fn sets_and_region_in_use_are_restored() {
        let state = |output: &str| {
            let mut charsets = Charsets::default();
            charsets.translate(output.as_bytes());
            String::from_utf8([charsets.region(), charsets.sets()].concat()).unwrap()
        };
        assert_eq!(state("\x1b[2;5r\x1b(0\x1b)0\x0e"), "\x1b[2;5r\x1b(0\x1b)0\x0e");
        for reset in ["\x1bc", "\x1b[!p", "\x1b[r\x1b(B"] {
            assert_eq!(state(&format!("\x1b[2;5r\x1b(0{reset}")), "", "{reset:?}");
        }
        // Other sequences that end in the same letter.
        assert_eq!(state("\x1b[?1049r\x1b[>4r"), "");
    }

    proptest! {
        #[test]
        fn pieces_are_translated_like_the_whole(
            output in "[a-z\u{e}\u{f}\u{1b}(0B)\\[;r!p\\\\\u{7}\\]é]{0,40}", at in 0..40usize,
        ) {
            let bytes = output.as_bytes();
            let at = at.min(bytes.len());
            let mut charsets = Charsets::default();
            let mut pieces = charsets.translate(&bytes[..at]);
            pieces.extend(charsets.translate(&bytes[at..]));
            prop_assert_eq!(pieces, Charsets::default().translate(bytes));
        }
    }
}
