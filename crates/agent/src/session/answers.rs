//! Separates the replies that terminals send by themselves from typed input.
//!
//! A program asks the terminal (where the cursor is, what it can do, which colors it has) and
//! every terminal of a session answers, and reports its focus. None of that is typing.

/// A longer text is taken for typed.
const MOST_TEXT: usize = 8 * 1024;
const MOST_CONTROL: usize = 64;
const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Typed,
    Answer,
}

/// Divides a client's input, which comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Divider {
    /// The beginning of what may become an answer.
    begun: Vec<u8>,
}

impl Divider {
    /// The parts that are whole with this piece.
    pub fn divide(&mut self, piece: &[u8]) -> Vec<(Kind, Vec<u8>)> {
        self.begun.extend_from_slice(piece);
        let mut parts: Vec<(Kind, Vec<u8>)> = Vec::new();
        let mut rest = self.begun.as_slice();
        while let Some((kind, length)) = first(rest) {
            let (part, after) = rest.split_at(length);
            match parts.last_mut() {
                Some((last, before)) if *last == kind => before.extend_from_slice(part),
                _ => parts.push((kind, part.to_vec())),
            }
            rest = after;
        }
        self.begun = rest.to_vec();
        parts
    }

    /// How many bytes have come of what may become an answer.
    pub fn begun(&self) -> usize {
        self.begun.len()
    }

    /// Returns an unfinished reply as typed input: a lone Escape, for one.
    pub fn give_up(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }
}

/// The kind and length of what the input begins with; none while more has to come to tell.
fn first(input: &[u8]) -> Option<(Kind, usize)> {
    let Some(at) = input.iter().position(|byte| *byte == ESCAPE) else {
        return (!input.is_empty()).then_some((Kind::Typed, input.len()));
    };
    if at > 0 {
        return Some((Kind::Typed, at));
    }
    match *input.get(1)? {
        b'[' => control(input),
        b']' | b'P' | b'_' | b'^' => text(input),
        // The second begins something of its own.
        ESCAPE => Some((Kind::Typed, 1)),
        _ => Some((Kind::Typed, 2)),
    }
}

fn control(input: &[u8]) -> Option<(Kind, usize)> {
    let body = &input[2..];
    let Some(at) = body.iter().position(|byte| !matches!(byte, 0x20..0x40)) else {
        return (body.len() > MOST_CONTROL).then_some((Kind::Typed, input.len()));
    };
    if !matches!(body[at], 0x40..0x7f) {
        return Some((Kind::Typed, 2 + at));
    }
    let kind = if is_answer(&body[..at], body[at]) { Kind::Answer } else { Kind::Typed };
    Some((kind, 2 + at + 1))
}

/// Whether a control sequence is an answer or a report. Those of the mouse are a person's acts.
fn is_answer(parameters: &[u8], final_byte: u8) -> bool {
    let (private, has_any) = (parameters.first(), !parameters.is_empty());
    match final_byte {
        // The focus comes and goes.
        b'I' | b'O' => !has_any,
        // The cursor's position. Shift and F3 look the same where the cursor is in the first row.
        b'R' => parameters.contains(&b';'),
        // Kinds and features of the terminal.
        b'c' => matches!(private, Some(b'?' | b'>' | b'=')),
        b'u' | b'S' => private == Some(&b'?'),
        b'y' => parameters.ends_with(b"$"),
        // States, sizes and speeds.
        b'n' | b't' | b'x' => has_any,
        _ => false,
    }
}

fn text(input: &[u8]) -> Option<(Kind, usize)> {
    let body = &input[2..];
    let Some(at) = body.iter().position(|byte| matches!(*byte, BELL | ESCAPE)) else {
        return (body.len() > MOST_TEXT).then_some((Kind::Typed, input.len()));
    };
    if body[at] == BELL {
        return Some((Kind::Answer, 2 + at + 1));
    }
    match *body.get(at + 1)? {
        b'\\' => Some((Kind::Answer, 2 + at + 2)),
        _ => Some((Kind::Typed, 2 + at)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWERS: [&str; 14] = [
        "\x1b[?62;22c",
        "\x1b[>41;354;0c",
        "\x1b[24;80R",
        "\x1b[?1;1;1R",
        "\x1b[0n",
        "\x1b[?2004;1$y",
        "\x1b[8;24;80t",
        "\x1b[I",
        "\x1b[O",
        "\x1b[?1u",
        "\x1b]11;rgb:0000/0000/0000\x1b\\",
        "\x1b]52;c;Zm9v\x07",
        "\x1bP>|xterm(379)\x1b\\",
        "\x1b_Gi=1;OK\x1b\\",
    ];
    const TYPED: [&str; 10] = [
        "ls\r",
        "\x1bOA",
        "\x1b[A",
        "\x1b[1;5C",
        "\x1b[15~",
        "\x1b[200~pasted\x1b[201~",
        "\x1b[<0;5;7M",
        "\x1bx",
        "\x1b[97;5u",
        "é漢",
    ];

    #[test]
    fn answers_of_terminals_are_told_from_keys() {
        for (kind, texts) in [(Kind::Answer, &ANSWERS[..]), (Kind::Typed, &TYPED[..])] {
            for text in texts {
                let parts = Divider::default().divide(text.as_bytes());
                assert_eq!(parts, [(kind, text.as_bytes().to_vec())], "{text:?}");
            }
        }
    }

    #[test]
    fn lone_escape_waits_and_is_typed() {
        let mut divider = Divider::default();
        assert_eq!(divider.divide(b"a\x1b"), [(Kind::Typed, b"a".to_vec())]);
        assert_eq!(divider.begun(), 1);
        assert_eq!(divider.give_up(), b"\x1b");
        assert_eq!(divider.begun(), 0);
    }

    proptest! {
        #[test]
        fn pieces_are_divided_like_the_whole(
            chosen in proptest::collection::vec(0..ANSWERS.len() + TYPED.len(), 0..6),
            cuts in proptest::collection::vec(1..9usize, 0..40),
        ) {
            let all: Vec<&str> = ANSWERS.into_iter().chain(TYPED).collect();
            let input: String = chosen.iter().map(|index| all[*index]).collect();
            let whole = Divider::default().divide(input.as_bytes());
            let mut divider = Divider::default();
            let mut rest = input.as_bytes();
            let mut joined: Vec<(Kind, Vec<u8>)> = Vec::new();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                for (kind, part) in divider.divide(piece) {
                    match joined.last_mut() {
                        Some((last, before)) if *last == kind => before.extend(part),
                        _ => joined.push((kind, part)),
                    }
                }
                rest = after;
            }
            prop_assert_eq!(joined, whole);
        }

        #[test]
        fn no_byte_is_lost(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut divider = Divider::default();
            let parts = divider.divide(&input);
            let mut all: Vec<u8> = parts.into_iter().flat_map(|(_, part)| part).collect();
            all.extend(divider.give_up());
            prop_assert_eq!(all, input);
        }
    }
}
