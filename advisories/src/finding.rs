//! What is wrong: packages, advisories and policy held against each other.

use std::collections::BTreeSet;
use std::fmt;

use crate::lock::{Package, Packages};
use crate::policy::Policy;
use crate::snapshot::{Advisory, Informational, Snapshot};

/// Something that must be done; shown, it says what.
#[derive(Clone, Debug)]
pub enum Finding {
    Affected { package: Package, advisory: Advisory },
    NeverAsked { package: Package },
    IgnoredForNothing { id: String },
}

/// What advisories there are on what is used.
#[derive(Debug, Default)]
pub struct Comparison {
    pub findings: Vec<Finding>,
    /// What is affected as well, and is in `deny.toml`.
    pub ignored: Vec<(Package, Advisory)>,
}

pub fn compare(packages: &Packages, snapshot: &Snapshot, policy: &Policy) -> Comparison {
    let mut comparison = Comparison::default();
    let mut met = BTreeSet::new();
    for (package, &direct) in packages {
        if !snapshot.packages.contains(&package.name) {
            comparison.findings.push(Finding::NeverAsked { package: package.clone() });
        }
        let about = snapshot.advisories.iter().filter(|advisory| advisory.package == package.name);
        for advisory in about.filter(|advisory| advisory.affects(&package.version)) {
            met.insert(&advisory.id);
            let (package, advisory) = (package.clone(), advisory.clone());
            if policy.ignore.contains(&advisory.id) {
                comparison.ignored.push((package, advisory));
            } else if advisory.informational != Some(Informational::Unmaintained)
                || policy.unmaintained.has(direct)
            {
                comparison.findings.push(Finding::Affected { package, advisory });
            }
        }
    }
    let idle = policy.ignore.iter().filter(|id| !met.contains(id));
    comparison.findings.extend(idle.map(|id| Finding::IgnoredForNothing { id: id.clone() }));
    comparison
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affected { package, advisory } => {
                let Advisory { id, patched, informational, .. } = advisory;
                write!(out, "{package} is affected by {}. ", describe(advisory))?;
                if *informational == Some(Informational::Unmaintained) {
                    write!(out, "Do without it, or, while that takes its time,")?;
                } else if patched.is_empty() {
                    write!(out, "No version of it is mended. If it does not concern us,")?;
                } else {
                    let patched: Vec<_> = patched.iter().map(ToString::to_string).collect();
                    let patched = patched.join(" or ");
                    let take = format!("cargo update -p {} --precise VERSION", package.name);
                    write!(out, "Mended: {patched}. Take one: {take}. If it does not concern us,")?;
                }
                write!(out, " name {id} in deny.toml, with the reason and a date to look again")
            }
            Self::NeverAsked { package } => {
                let name = &package.name;
                write!(
                    out,
                    "nobody asked about {package} yet. Renew advisories/snapshot.toml as CONTRIBUTING.md says, or look \
                     {name} up at https://rustsec.org and write its name, and each advisory it has, into that file"
                )
            }
            Self::IgnoredForNothing { id } => write!(
                out,
                "deny.toml ignores {id}, which concerns no version that is used. Take it out (if it is newer than \
                 advisories/snapshot.toml, renew that instead)"
            ),
        }
    }
}

/// An advisory in one line.
pub fn describe(advisory: &Advisory) -> String {
    let Advisory { id, title, date, .. } = advisory;
    format!("{id} of {date} ({title})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope;

    #[test]
    fn what_is_mended_is_no_finding() {
        let comparison = compare(
            &used(&[("hole", "1.2.3", true), ("other", "1.0.0", true)]),
            &snapshot(),
            &policy(&[]),
        );
        assert!(comparison.findings.is_empty() && comparison.ignored.is_empty(), "{comparison:?}");
    }

    #[test]
    fn an_affected_version_is_found_and_the_way_out_is_named() {
        let said = findings(&[("hole", "1.2.2", false), ("hole", "1.3.0", true)], &policy(&[]));
        let [said] = &said[..] else { panic!("{said:?}") };
        for part in [
            "hole 1.2.2",
            "RUSTSEC-2026-0001 of 2026-01-02",
            "Mended: >= 1.2.3",
            "cargo update -p hole",
            "deny.toml",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn what_is_only_unsound_or_worth_a_notice_counts_like_a_hole() {
        for name in ["unsound", "notice"] {
            let said = findings(&[(name, "1.0.0", false)], &policy(&[]));
            assert!(
                matches!(&said[..], [said] if said.contains("No version of it is mended")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn what_nobody_maintains_counts_where_deny_toml_says() {
        let used = [("old", "1.0.0", true), ("ancient", "1.0.0", false)];
        let mut policy = policy(&[]);
        for (scope, expected) in [
            (Scope::Workspace, &["old"][..]),
            (Scope::Transitive, &["ancient"]),
            (Scope::All, &["ancient", "old"]),
            (Scope::None, &[]),
        ] {
            policy.unmaintained = scope;
            let said = findings(&used, &policy);
            let names: Vec<_> = said.iter().filter_map(|said| said.split(' ').next()).collect();
            assert_eq!(names, expected, "{scope:?}");
        }
    }

    #[test]
    fn what_was_withdrawn_counts_for_nothing() {
        assert!(findings(&[("withdrawn", "1.0.0", true)], &policy(&[])).is_empty());
    }

    #[test]
    fn who_is_in_deny_toml_is_told_of_and_no_finding() {
        let comparison = compare(
            &used(&[("hole", "1.0.0", true)]),
            &snapshot(),
            &policy(&["RUSTSEC-2026-0001"]),
        );
        assert!(comparison.findings.is_empty(), "{comparison:?}");
        let [(package, advisory)] = &comparison.ignored[..] else { panic!("{comparison:?}") };
        assert_eq!(
            (package.to_string(), &*advisory.id),
            ("hole 1.0.0".to_owned(), "RUSTSEC-2026-0001")
        );
    }

    #[test]
    fn who_is_in_deny_toml_for_nothing_is_found() {
        let policy = policy(&["RUSTSEC-2026-0001", "RUSTSEC-2019-0001", "RUSTSEC-2026-0005"]);
        let said = findings(&[("hole", "1.2.3", true), ("withdrawn", "1.0.0", true)], &policy);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said.iter()
                .all(|said| said.contains("concerns no version") && said.contains("Take it out")),
            "{said:?}"
        );
    }

    #[test]
    fn a_package_nobody_asked_about_is_found() {
        let said = findings(&[("new", "0.1.0", false)], &policy(&[]));
        let [said] = &said[..] else { panic!("{said:?}") };
        assert!(said.contains("new 0.1.0") && said.contains("advisories/snapshot.toml"), "{said}");
    }

    fn findings(packages: &[(&str, &str, bool)], policy: &Policy) -> Vec<String> {
        let comparison = compare(&used(packages), &snapshot(), policy);
        comparison.findings.iter().map(ToString::to_string).collect()
    }

    fn used(packages: &[(&str, &str, bool)]) -> Packages {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.parse().unwrap(),
        };
        packages.iter().map(|(name, version, direct)| (package(name, version), *direct)).collect()
    }

    fn policy(ignore: &[&str]) -> Policy {
        let ignore = ignore.iter().map(|id| (*id).to_owned()).collect();
        Policy { ignore, unmaintained: Scope::Workspace }
    }

    fn snapshot() -> Snapshot {
        let head = "asked = 2026-02-01\nnewest = 2026-01-02\n\
                    packages = ['ancient', 'hole', 'notice', 'old', 'other', 'unsound', 'withdrawn']\n";
        let advisory = |number: u8, package: &str, patched: &str, rest: &str| {
            format!(
                "[[advisory]]\nid = 'RUSTSEC-2026-000{number}'\npackage = '{package}'\ntitle = 'a hole'\n\
                 date = 2026-01-02\npatched = [{patched}]\n{rest}\n"
            )
        };
        let text = [
            head.to_owned(),
            advisory(1, "hole", "'>= 1.2.3'", ""),
            advisory(2, "unsound", "", "informational = 'unsound'"),
            advisory(3, "old", "", "informational = 'unmaintained'"),
            advisory(4, "ancient", "", "informational = 'unmaintained'"),
            advisory(5, "withdrawn", "", "withdrawn = 2026-01-03"),
            advisory(6, "notice", "", "informational = 'notice'"),
        ];
        toml::from_str(&text.concat()).unwrap()
    }
}
