//! Known holes in what this repository depends on, asked of a snapshot instead of the network.
//!
//! `advisories/snapshot.toml` has what the RustSec database (<https://rustsec.org>) said, on one day,
//! of every package in our lock files. [`look`] holds the locked versions against it. As long as all
//! is well
//!
//! * no version is affected by an advisory that is not in `deny.toml`, with a reason. What is unsound
//!   counts like a hole; what nobody maintains counts where `deny.toml` says so;
//! * every package was asked about, so a new dependency has been looked up;
//! * `deny.toml` ignores nothing that concerns no version any more.
//!
//! `tests/repository.rs` looks with each `make test`, `scripts/advisories.sh` with `make check`. A
//! version that is yanked, and what was published since the snapshot, only `make audit` with
//! cargo-deny and a network can know.

mod finding;
mod lock;
mod policy;
mod range;
mod renew;
mod snapshot;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use toml::value::Datetime;

pub use finding::{Comparison, Finding, compare, describe};
pub use lock::{Package, Packages, read};
pub use policy::{Policy, Scope};
pub use range::Range;
pub use snapshot::{Advisory, Informational, Snapshot};

/// Everything that is built here, libFuzzer's part of `fuzz` apart from the workspace.
const LOCKS: [&str; 2] = ["Cargo.lock", "fuzz/libfuzzer/Cargo.lock"];
const SNAPSHOT: &str = "advisories/snapshot.toml";

/// What the snapshot says of a repository.
#[derive(Debug)]
pub struct Report {
    pub packages: Packages,
    pub snapshot: Snapshot,
    pub comparison: Comparison,
}

pub fn look(top: &Path) -> anyhow::Result<Report> {
    let snapshot = text(top, SNAPSHOT)?;
    let snapshot = Snapshot::parse(&snapshot).context(SNAPSHOT)?;
    let policy = Policy::parse(&text(top, "deny.toml")?).context("deny.toml")?;
    let packages = locked(top)?;
    let comparison = compare(&packages, &snapshot, &policy);
    Ok(Report { packages, snapshot, comparison })
}

/// Writes a new snapshot, from a clone of the database.
pub fn renew(top: &Path, database: &Path, asked: Datetime) -> anyhow::Result<()> {
    let names: BTreeSet<_> = locked(top)?.into_keys().map(|package| package.name).collect();
    let text = renew::write(&renew::take(database, names, asked)?)?;
    Snapshot::parse(&text)?;
    fs::write(top.join(SNAPSHOT), text).context(SNAPSHOT)
}

/// All packages of others that are in a lock file.
pub fn locked(top: &Path) -> anyhow::Result<Packages> {
    let mut packages = Packages::new();
    for lock in LOCKS {
        read(&text(top, lock)?, &mut packages).context(lock)?;
    }
    Ok(packages)
}

fn text(top: &Path, path: &str) -> anyhow::Result<String> {
    fs::read_to_string(top.join(path)).context(path.to_owned())
}
