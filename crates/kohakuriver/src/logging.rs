//! Logs go to standard error. `KOHAKURIVER_LOG` sets levels, as in `warn,kohakuriver_host=debug`,
//! `KOHAKURIVER_LOG_FORMAT=json` the format.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub fn start() {
    let wanted = std::env::var("KOHAKURIVER_LOG").ok().and_then(|levels| levels.parse().ok());
    let levels = discreet(wanted.unwrap_or_else(usual));
    let colored = io::IsTerminal::is_terminal(&io::stderr());
    let builder = tracing_subscriber::fmt()
        // Not the default: the levels decide.
        .with_max_level(LevelFilter::TRACE)
        .with_writer(move || OneLine { to: io::stderr(), colored })
        .with_target(false)
        .with_ansi(colored);
    if std::env::var("KOHAKURIVER_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().finish().with(levels).init();
    } else {
        builder.compact().finish().with(levels).init();
    }
}

/// Keeps each event on one line and harmless to a terminal: a name or an error of a VPS could
/// otherwise end its line and write the next one, or move the cursor. The library writes an event
/// at once.
#[derive(Debug)]
struct OneLine<W> {
    to: W,
    /// Whether the library colors its own words; then sequences that color are kept.
    colored: bool,
}

impl<W: io::Write> io::Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut rest = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = String::with_capacity(event.len() + 1);
        while let Some(next) = rest.chars().next() {
            let color = if self.colored { color_sequence(rest) } else { None };
            let taken = match color {
                Some(sequence) => sequence,
                None => &rest[..next.len_utf8()],
            };
            if color.is_none() && next.is_control() && next != '\t' {
                line.extend(next.escape_default());
            } else {
                line.push_str(taken);
            }
            rest = &rest[taken.len()..];
        }
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The sequence that sets colors with which the text begins, if it begins with one.
fn color_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then(|| &text[..2 + end + 1])
}

/// What the engine is told, environments with people's passwords among it, is in that library's
/// details: they are in no log, whatever levels are wanted.
fn discreet(levels: Targets) -> Targets {
    levels.with_target("bollard", LevelFilter::WARN)
}

/// Info from us, whose crates all begin so, and warnings from libraries.
fn usual() -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("kohakuriver", LevelFilter::INFO)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn event_with_foreign_newlines_is_one_line() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || OneLine { to: writer.clone(), colored: false })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = "no\n2026-01-01T00:00:00Z  INFO host is up\r\u{1b}[2J";
            tracing::info!(%error, "failed");
            tracing::info!("next");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("no\\n2026") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn colors_are_kept_on_a_terminal_and_nothing_else() {
        let kept = Kept::default();
        let mut terminal = OneLine { to: kept.clone(), colored: true };
        io::Write::write_all(&mut terminal, b"\x1b[2m12:00\x1b[0m \x1b[2J\x1b]0;x\x07 \x1b[1\n")
            .unwrap();
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let escaped = r"\u{1b}[2J\u{1b}]0;x\u{7} \u{1b}[1";
        assert_eq!(text, format!("\u{1b}[2m12:00\u{1b}[0m {escaped}\n"));
    }

    #[test]
    fn our_crates_say_what_they_do_and_libraries_only_what_is_wrong() {
        let levels = usual();
        for ours in ["kohakuriver", "kohakuriver_host::links", "kohakuriver_vm"] {
            assert!(levels.would_enable(ours, &Level::INFO));
            assert!(!levels.would_enable(ours, &Level::DEBUG));
        }
        assert!(levels.would_enable("russh", &Level::WARN));
        assert!(!levels.would_enable("russh", &Level::INFO));
    }

    #[test]
    fn what_is_said_to_the_engine_is_not_logged_even_where_everything_is_wanted() {
        for wanted in ["debug", "trace", "warn,bollard=trace"] {
            let levels = discreet(wanted.parse().unwrap());
            assert!(!levels.would_enable("bollard::docker", &Level::DEBUG), "{wanted}");
        }
        assert!(discreet("debug".parse().unwrap()).would_enable("kohakuriver", &Level::DEBUG));
    }

    #[test]
    fn wanted_levels_are_those_of_each_target_and_of_the_rest() {
        let levels: Targets = "warn,kohakuriver_host=debug".parse().unwrap();
        assert!(levels.would_enable("kohakuriver_host::gateway", &Level::DEBUG));
        assert!(!levels.would_enable("kohakuriver_runner", &Level::INFO));
    }
}
