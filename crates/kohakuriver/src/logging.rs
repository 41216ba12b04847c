//! Logs go to standard error. `KOHAKURIVER_LOG` sets levels in the usual filter syntax,
//! `KOHAKURIVER_LOG_FORMAT=json` the format.

use tracing_subscriber::EnvFilter;

/// Info from us, warnings from libraries.
const DEFAULT: &str = "warn,kohakuriver=info,kohakuriver_host=info,kohakuriver_runner=info,\
    kohakuriver_link=info,kohakuriver_agent=info,kohakuriver_store=info";

pub fn start() {
    let filter =
        EnvFilter::try_from_env("KOHAKURIVER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if std::env::var("KOHAKURIVER_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.compact().init();
    }
}
