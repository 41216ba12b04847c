//! Side-by-side measurements: the waiting times of KohakuRiver and of the plain tools, in one run,
//! alternating, so that both run under the same conditions.
//!
//! `kohakuriver-bench [NAME...]` runs all or the named ones and prints a table of medians. It needs
//! the requirements of the end-to-end tests, and `scripts/e2e-images.sh --with-debian`. `make
//! bench` provides all of them. The results are figures to read, never tests with a time limit.

mod audit;
mod auth;
mod beside;
mod bulk;
mod create;
mod exec;
mod forward;
mod hostile;
mod lifecycle;
mod list;
mod memory;
mod reconcile;
mod sample;
mod scale;
mod sftp;
mod start;
mod vm;

use std::io::Write;
use std::process::ExitCode;

use sample::Line;

/// A measurement and its name on the command line.
type Bench = (&'static str, fn() -> Vec<Line>);

const BENCHES: [Bench; 15] = [
    ("start", start::run),
    ("create", create::run),
    ("bulk", bulk::run),
    ("exec", exec::run),
    ("forward", forward::run),
    ("sftp", sftp::run),
    ("lifecycle", lifecycle::run),
    ("auth", auth::run),
    ("audit", audit::run),
    ("hostile", hostile::run),
    ("list", list::run),
    ("reconcile", reconcile::run),
    ("scale", scale::run),
    ("memory", memory::run),
    ("vm", vm::run),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == [hostile::ATTACKER] {
        return hostile::attack();
    }
    let unknown = wanted.iter().find(|name| BENCHES.iter().all(|(known, _)| known != name));
    if let Some(unknown) = unknown {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        say(&format!("error: no measurement '{unknown}'; there are: {}", names.join(", ")));
        return ExitCode::from(2);
    }
    for (name, run) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            say(&format!("measuring {name} ..."));
            for line in run() {
                #[expect(clippy::disallowed_methods, reason = "a tool for a person who looks on")]
                let _ = writeln!(std::io::stdout().lock(), "{line}");
            }
        }
    }
    ExitCode::SUCCESS
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
