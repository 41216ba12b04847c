//! Logs go to standard error. `KOHAKURIVER_LOG` sets levels, as in `warn,kohakuriver_host=debug`,
//! `KOHAKURIVER_LOG_FORMAT=json` the format.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub fn start() {
    let wanted = std::env::var("KOHAKURIVER_LOG").ok().and_then(|levels| levels.parse().ok());
    let levels = discreet(wanted.unwrap_or_else(usual));
    let builder = tracing_subscriber::fmt()
        // Not the default: the levels decide.
        .with_max_level(LevelFilter::TRACE)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    if std::env::var("KOHAKURIVER_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().finish().with(levels).init();
    } else {
        builder.compact().finish().with(levels).init();
    }
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
