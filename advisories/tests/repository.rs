//! This repository and its snapshot, as they are.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kohakuriver_advisories::{
    Finding, Package, Packages, Policy, Snapshot, compare, locked, look, read,
};

#[test]
fn no_version_that_is_used_has_an_advisory_that_deny_toml_does_not_name() {
    let report = look(top()).unwrap();
    assert!(report.packages.len() > 200, "{} packages only", report.packages.len());
    let said: Vec<_> = report.comparison.findings.iter().map(ToString::to_string).collect();
    assert!(said.is_empty(), "\n{}\n", said.join("\n"));
}

/// The snapshot is in force: the versions from before the mended ones would be found.
#[test]
fn versions_from_before_they_were_mended_are_found() {
    for (name, version, id) in [
        ("rustls", "0.23.44", "RUSTSEC-2026-0285"),
        ("rustls-webpki", "0.103.12", "RUSTSEC-2026-0104"),
        ("hickory-proto", "0.26.0", "RUSTSEC-2026-0119"),
        ("hickory-net", "0.26.0-beta.1", "RUSTSEC-2026-0120"),
        // Vendored: it has no source, and a version all the same.
        ("russh", "0.60.2", "RUSTSEC-2026-0154"),
        ("anyhow", "1.0.102", "RUSTSEC-2026-0190"),
        ("tokio", "1.44.1", "RUSTSEC-2025-0023"),
    ] {
        let mut packages = locked(top()).unwrap();
        let package = packages.keys().find(|package| package.name == name).cloned();
        let package = package.unwrap_or_else(|| panic!("{name} is not used: take it out here"));
        let direct = packages.remove(&package).unwrap();
        packages.insert(Package { version: version.parse().unwrap(), ..package }, direct);
        let found = compare(&packages, &snapshot(), &policy()).findings;
        let [Finding::Affected { package, advisory }] = &found[..] else {
            panic!("{name} {version}: {found:?}")
        };
        assert_eq!((&*package.name, &*advisory.id), (name, id));
    }
}

#[test]
fn a_new_dependency_must_be_asked_about() {
    let mut text = fs::read_to_string(top().join("Cargo.lock")).unwrap();
    text.push_str("\n[[package]]\nname = \"left-pad\"\nversion = \"1.0.0\"\n");
    let mut packages = Packages::new();
    read(&text, &mut packages).unwrap();
    let found = compare(&packages, &snapshot(), &policy()).findings;
    let [Finding::NeverAsked { package }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(package.to_string(), "left-pad 1.0.0");
}

#[test]
fn what_deny_toml_ignores_would_be_found_otherwise() {
    let nothing = Policy { ignore: BTreeSet::new(), ..policy() };
    let found = compare(&locked(top()).unwrap(), &snapshot(), &nothing).findings;
    let found = found.into_iter().map(|finding| match finding {
        Finding::Affected { advisory, .. } => advisory.id,
        Finding::NeverAsked { .. } | Finding::IgnoredForNothing { .. } => panic!("{finding}"),
    });
    assert_eq!(found.collect::<BTreeSet<_>>(), policy().ignore);
}

fn snapshot() -> Snapshot {
    let text = fs::read_to_string(top().join("advisories/snapshot.toml")).unwrap();
    Snapshot::parse(&text).unwrap()
}

fn policy() -> Policy {
    Policy::parse(&fs::read_to_string(top().join("deny.toml")).unwrap()).unwrap()
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
