//! `kohakuriver-advisories` says what the snapshot knows of our dependencies, and fails where
//! something must be done. `kohakuriver-advisories renew DATABASE DAY` takes a new snapshot from a
//! clone of the database. scripts/advisories.sh runs it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use kohakuriver_advisories::{Report, describe, look, renew};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
fn run() -> anyhow::Result<bool> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("there is no repository")?;
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {}
        [word, database, day] if word == "renew" => {
            renew(top, Path::new(database), day.parse().context("the day is no date")?)?;
        }
        _ => bail!("give nothing, or: renew DATABASE DAY"),
    }
    let Report { packages, snapshot, comparison } = look(top)?;
    let names: BTreeSet<_> = packages.keys().map(|package| &package.name).collect();
    say(&format!(
        "advisories: {} packages in {} versions, {} advisories on them in the RustSec database as of {} (its newest \
         is of {})",
        names.len(),
        packages.len(),
        snapshot.advisories.len(),
        snapshot.asked,
        snapshot.newest,
    ));
    for (package, advisory) in &comparison.ignored {
        say(&format!("advisories: deny.toml ignores {} on {package}", describe(advisory)));
    }
    for finding in &comparison.findings {
        say(&format!("advisories: {finding}"));
    }
    let fine = comparison.findings.is_empty();
    if fine {
        say("advisories: no other concerns a version that is used");
    }
    Ok(fine)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
