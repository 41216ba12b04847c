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

/// Escapes control characters of each event: a name or an error of a VPS could otherwise forge a log
/// line or move the cursor. The library writes an event in one call.
#[derive(Debug)]
struct OneLine<W> {
    to: W,
    /// Whether the library colors its output; color sequences are retained then.
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

/// Returns the color sequence at the start of the text, if any.
fn color_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters[end..].starts_with('m').then(|| &text[..2 + end + 1])
}

/// Caps the level of the engine's library: its debug output has the requests to the engine, with
/// passwords in environment variables, and must not be logged at any configured level.
fn discreet(levels: Targets) -> Targets {
    levels.with_target("bollard", LevelFilter::WARN)
}

/// Returns the default levels: info for this project's crates, warnings for libraries.
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
    fn only_color_sequences_pass_to_a_terminal() {
        let kept = Kept::default();
        let mut terminal = OneLine { to: kept.clone(), colored: true };
        io::Write::write_all(&mut terminal, b"\x1b[2m12:00\x1b[0m \x1b[2J\x1b]0;x\x07 \x1b[1\n")
            .unwrap();
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let escaped = r"\u{1b}[2J\u{1b}]0;x\u{7} \u{1b}[1";
        assert_eq!(text, format!("\u{1b}[2m12:00\u{1b}[0m {escaped}\n"));
    }

    #[test]
    fn default_is_info_for_own_crates_and_warn_for_others() {
        let levels = usual();
        for ours in ["kohakuriver", "kohakuriver_host::links", "kohakuriver_vm"] {
            assert!(levels.would_enable(ours, &Level::INFO));
            assert!(!levels.would_enable(ours, &Level::DEBUG));
        }
        assert!(levels.would_enable("russh", &Level::WARN));
        assert!(!levels.would_enable("russh", &Level::INFO));
    }

    #[test]
    fn engine_requests_are_not_logged_at_any_level() {
        for wanted in ["debug", "trace", "warn,bollard=trace"] {
            let levels = discreet(wanted.parse().unwrap());
            assert!(!levels.would_enable("bollard::docker", &Level::DEBUG), "{wanted}");
        }
        assert!(discreet("debug".parse().unwrap()).would_enable("kohakuriver", &Level::DEBUG));
    }

    #[test]
    fn configured_levels_apply_to_targets_and_the_rest() {
        let levels: Targets = "warn,kohakuriver_host=debug".parse().unwrap();
        assert!(levels.would_enable("kohakuriver_host::gateway", &Level::DEBUG));
        assert!(!levels.would_enable("kohakuriver_runner", &Level::INFO));
    }
}
