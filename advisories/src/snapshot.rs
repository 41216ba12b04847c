//! What the RustSec database said on the day it was asked: `advisories/snapshot.toml`.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use semver::Version;
use serde::{Deserialize, Serialize};
use toml::value::Datetime;

use crate::range::Range;

/// Fewer are a file that was cut off, or that somebody emptied to have peace.
const PACKAGES_AT_LEAST: usize = 200;
const ADVISORIES_AT_LEAST: usize = 50;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The day the database was asked.
    pub asked: Datetime,
    /// The date of the newest advisory it had, of any package.
    pub newest: Datetime,
    /// All packages that were asked about, with an advisory or without.
    pub packages: BTreeSet<String>,
    #[serde(rename = "advisory")]
    pub advisories: Vec<Advisory>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Advisory {
    pub id: String,
    pub package: String,
    pub title: String,
    pub date: Datetime,
    pub patched: Vec<Range>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unaffected: Vec<Range>,
    /// Absent for a hole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub informational: Option<Informational>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Datetime>,
}

/// Why there is an advisory without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Informational {
    Notice,
    Unmaintained,
    Unsound,
}

impl Snapshot {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let snapshot: Self = toml::from_str(text).context("the snapshot does not parse")?;
        snapshot.check().context(
            "the snapshot is not what the RustSec database can have said: \
             get the file's last good version back, or renew it as CONTRIBUTING.md says",
        )?;
        Ok(snapshot)
    }

    fn check(&self) -> anyhow::Result<()> {
        let (packages, advisories) = (self.packages.len(), self.advisories.len());
        ensure!(packages >= PACKAGES_AT_LEAST, "it has {packages} packages only");
        ensure!(advisories >= ADVISORIES_AT_LEAST, "it has {advisories} advisories only");
        ensure!(self.newest <= self.asked, "its newest advisory is younger than itself");
        let mut ids = BTreeSet::new();
        for Advisory { id, package, date, .. } in &self.advisories {
            ensure!(is_id(id), "'{id}' is no advisory's id");
            ensure!(ids.insert(id), "{id} is in it twice");
            ensure!(
                self.packages.contains(package),
                "{id} is about {package}, which was not asked about"
            );
            ensure!(*date <= self.newest, "{id} is younger than the newest advisory");
        }
        Ok(())
    }
}

impl Advisory {
    /// Whether it is about this version of its package.
    pub fn affects(&self, version: &Version) -> bool {
        let safe = |ranges: &[Range]| ranges.iter().any(|range| range.contains(version));
        self.withdrawn.is_none() && !safe(&self.patched) && !safe(&self.unaffected)
    }
}

/// RUSTSEC-2026-0285. RUSTSEC-0000-0000 is how drafts are called.
pub(crate) fn is_id(text: &str) -> bool {
    let numbers = text.strip_prefix("RUSTSEC-").and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(year, number)| {
        let digits = |text: &str| text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits(year) && digits(number) && year > "2000"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = include_str!("../snapshot.toml");

    #[test]
    fn what_is_neither_patched_nor_unaffected_nor_withdrawn_is_affected() {
        let mut advisory = advisory(
            r#"
            patched = [">= 1.2.3, < 2", ">= 2.0.4"]
            unaffected = ["< 1.0.0"]
            "#,
        );
        let bad = "1.0.0-rc.1 1.0.0 1.2.2 1.2.3-rc.1 2.0.0-alpha.1 2.0.0 2.0.3 2.0.4-rc.1";
        let good = "0.1.0-alpha.1 0.9.9 1.2.3 1.9.0-beta.2 1.9.0 2.0.4 2.1.0-rc.1 3.0.0";
        for (versions, affected) in [(bad, true), (good, false)] {
            for version in versions.split(' ') {
                assert_eq!(advisory.affects(&version.parse().unwrap()), affected, "{version}");
            }
        }
        advisory.withdrawn = Some("2026-01-03".parse().unwrap());
        assert!(!advisory.affects(&"2.0.0".parse().unwrap()));
    }

    #[test]
    fn where_nothing_is_patched_every_version_is_affected() {
        let advisory = advisory("patched = []");
        for version in ["0.1.0", "0.9.8", "0.10.0-rc.18", "1.0.0"] {
            assert!(advisory.affects(&version.parse().unwrap()), "{version}");
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_one_is_refused() {
        let (head, advisories) = REAL.split_at(REAL.find("[[advisory]]").unwrap());
        let days = &head[..head.find("packages = [").unwrap()];
        let newest = |day: &str| {
            let line = REAL.lines().find(|line| line.starts_with("newest = ")).unwrap();
            REAL.replacen(line, &format!("newest = {day}"), 1)
        };
        // Of the first two advisories.
        let mut words = advisories.split('"').skip(1).step_by(2);
        let (first, about) = (words.next().unwrap(), words.next().unwrap());
        let second = words.find(|word| is_id(word)).unwrap();

        refuse("", "does not parse");
        refuse(&REAL[..REAL.len() - 3], "does not parse");
        refuse(&REAL.replace("patched", "patchd"), "does not parse");
        refuse(&REAL.replacen("[\">= ", "[\">= newer", 1), "does not parse");
        refuse(&format!("{head}advisory = []"), "0 advisories only");
        refuse(&format!("{days}packages = []\n{advisories}"), "0 packages only");
        refuse(&REAL.replacen(&format!("    \"{about}\",\n"), "", 1), "was not asked about");
        refuse(&REAL.replacen(first, second, 1), "is in it twice");
        refuse(&REAL.replacen(first, "RUSTSEC-0000-0000", 1), "is no advisory's id");
        refuse(&newest("2016-01-01"), "younger than the newest");
        refuse(&newest("2999-01-01"), "younger than itself");
    }

    fn refuse(text: &str, why: &str) {
        assert_ne!(text, REAL, "{why}");
        let error = format!("{:#}", Snapshot::parse(text).unwrap_err());
        assert!(error.contains(why), "{error} instead of {why}");
    }

    fn advisory(versions: &str) -> Advisory {
        let head =
            "id = 'RUSTSEC-2026-9999'\npackage = 'thing'\ntitle = 'a hole'\ndate = 2026-01-01";
        toml::from_str(&format!("{head}\n{versions}")).unwrap()
    }
}
