//! The screen of a session's terminal, so that clients that attach later see the same.

use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kohakuriver_agent_protocol::exec::Size;
use kohakuriver_agent_protocol::session::MAX_TITLE;
use vt100::Parser;

use super::charset::Charsets;

/// Lines kept above the screen: 2.5 MB of a busy session of the usual width.
const SCROLLBACK: usize = 1000;
/// An emulated screen costs 32 bytes a cell; terminals larger than this are emulated in part.
const MOST_ROWS: u16 = 300;
const MOST_COLS: u16 = 600;

#[derive(Default)]
struct Title(String);

impl vt100::Callbacks for Title {
    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        self.0 = String::from_utf8_lossy(title).chars().take(MAX_TITLE).collect();
    }
}

/// An emulator fed with the session's output. Programs can write anything: if that is too much
/// for the emulator, the session goes on without one.
pub(super) struct Screen {
    parser: Option<Parser<Title>>,
    charsets: Charsets,
}

impl Screen {
    pub fn new(size: Size) -> Self {
        let (rows, cols) = emulated(size);
        let parser = Parser::new_with_callbacks(rows, cols, SCROLLBACK, Title::default());
        Self { parser: Some(parser), charsets: Charsets::default() }
    }

    pub fn process(&mut self, output: &[u8]) {
        let output = self.charsets.translate(output);
        self.guarded(|parser| parser.process(&output));
    }

    pub fn resize(&mut self, size: Size) {
        let (rows, cols) = emulated(size);
        self.charsets.resized();
        self.guarded(|parser| parser.set_size(rows, cols));
    }

    pub fn title(&self) -> String {
        self.parser.as_ref().map(|parser| parser.callbacks().0.clone()).unwrap_or_default()
    }

    /// Whether a full-screen program is on: it will want to draw anew.
    pub fn is_full_screen(&self) -> bool {
        self.parser.as_ref().is_some_and(|parser| parser.screen().alternate_screen())
    }

    /// Returns the bytes that make a terminal show this screen, the lines above it first.
    pub fn picture(&mut self) -> Vec<u8> {
        let (region, sets) = (self.charsets.region(), self.charsets.sets());
        let mut picture = b"\x1b[!p\x1b[?1049l\x1b[H\x1b[2J".to_vec();
        self.guarded(|parser| {
            let full_screen = parser.screen().alternate_screen();
            if full_screen {
                picture.extend_from_slice(b"\x1b[?1049h");
            } else {
                let (rows, cols) = parser.screen().size();
                lines_above(parser.screen_mut(), rows.get(), cols.get(), &mut picture);
            }
            picture.extend_from_slice(parser.screen().state_formatted().as_bytes());
            picture.extend_from_slice(&region);
            picture.extend_from_slice(parser.screen().cursor_state_formatted().as_bytes());
        });
        picture.extend_from_slice(&sets);
        picture
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Parser<Title>)) {
        let Some(parser) = &mut self.parser else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| work(parser))).is_err() {
            tracing::warn!("the terminal emulator gave up; the session goes on without scrollback");
            self.parser = None;
        }
    }
}

/// Writes what has scrolled off, and pushes it off the terminal's screen as well.
fn lines_above(screen: &mut vt100::Screen, rows: u16, cols: u16, picture: &mut Vec<u8>) {
    let mut left = screen.scrollback_len();
    if left == 0 {
        return;
    }
    while left > 0 {
        screen.set_scrollback(left);
        for row in screen.rows_formatted(0, cols).take(left.min(rows.into())) {
            picture.extend_from_slice(b"\x1b[m");
            picture.extend_from_slice(row.as_bytes());
            picture.extend_from_slice(b"\x1b[m\r\n");
        }
        left = left.saturating_sub(rows.into());
    }
    screen.set_scrollback(0);
    picture.extend(std::iter::repeat_n(b'\n', rows.into()));
}

fn emulated(size: Size) -> (NonZeroU16, NonZeroU16) {
    let within = |value: u16, most: u16, unknown: u16| {
        let value = if value == 0 { unknown } else { value.min(most) };
        NonZeroU16::new(value).unwrap_or(NonZeroU16::MIN)
    };
    (within(size.rows, MOST_ROWS, 24), within(size.cols, MOST_COLS, 80))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { rows: 5, cols: 20 };

    fn contents(screen: &Screen) -> String {
        screen.parser.as_ref().unwrap().screen().contents()
    }

    /// Replays the picture in another terminal and returns its content.
    fn shown(screen: &mut Screen) -> (String, usize, Screen) {
        let mut other = Screen::new(SIZE);
        other.process(b"what was there before\r\n\x1b[31;5mand its colours");
        other.process(&screen.picture());
        let above = other.parser.as_ref().unwrap().screen().scrollback_len();
        (contents(&other), above, other)
    }

    #[test]
    fn a_picture_shows_the_screen_the_lines_above_it_and_the_cursor() {
        let mut screen = Screen::new(SIZE);
        for line in 0..12 {
            screen.process(format!("line {line}\r\n").as_bytes());
        }
        screen.process("$ prompt é漢".as_bytes());
        let (text, above, other) = shown(&mut screen);
        assert_eq!(text, contents(&screen));
        assert!(above >= 8, "{above} lines above");
        let cursor = |screen: &Screen| screen.parser.as_ref().unwrap().screen().cursor_position();
        assert_eq!(cursor(&other), cursor(&screen));
    }

    #[test]
    fn a_full_screen_program_is_shown_as_such_with_its_modes() {
        let mut screen = Screen::new(SIZE);
        screen.process(b"shell\x1b[?1049h\x1b[?1000h\x1b[?1006h\x1b[?2004h\x1b[2;3Hvim");
        let (text, _, other) = shown(&mut screen);
        assert_eq!(text, contents(&screen));
        let other = other.parser.unwrap();
        assert!(other.screen().alternate_screen() && other.screen().bracketed_paste());
        assert_eq!(other.screen().mouse_protocol_mode(), vt100::MouseProtocolMode::PressRelease);
    }

    #[test]
    fn line_drawing_and_scroll_region_are_in_the_picture() {
        let mut screen = Screen::new(SIZE);
        screen.process(b"\x1b[2;4r\x1b[H\x1b(0lqqk\r\n\x1b[3;1Hx");
        let (text, _, mut other) = shown(&mut screen);
        assert_eq!(text, contents(&screen));
        assert!(text.starts_with("┌──┐"), "{text}");
        // What follows is drawn with the same set, and scrolls in the same rows.
        for screen in [&mut screen, &mut other] {
            screen.process(b"q\r\n\r\n\r\nend");
        }
        assert_eq!(contents(&other), contents(&screen));
        assert!(contents(&screen).starts_with("┌──┐"), "{}", contents(&screen));
    }

    #[test]
    fn a_title_is_kept_within_bounds() {
        let mut screen = Screen::new(SIZE);
        screen.process(format!("\x1b]2;{}\x07", "x".repeat(9000)).as_bytes());
        assert_eq!(screen.title().len(), MAX_TITLE);
    }

    proptest! {
        #[test]
        fn whatever_a_program_writes_in_whatever_size_is_no_panic(
            pieces in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..60), any::<u16>(), any::<u16>()), 0..8),
        ) {
            let mut screen = Screen::new(Size { rows: 0, cols: 0 });
            for (output, rows, cols) in pieces {
                screen.process(&output);
                screen.process(b"\x1b[3;9r\x1b[?1049h\x1b[999;999Hx\x1b[2L\xf0\x9f\xa6\x80");
                screen.resize(Size { rows, cols });
                let _ = screen.picture();
            }
        }
    }
}
