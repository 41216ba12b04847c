//! The versions that one entry of an advisory's `patched` or `unaffected` names.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Bound;

use semver::{BuildMetadata, Comparator, Op, Prerelease, Version, VersionReq};
use serde::{Deserialize, Serialize};

/// Versions by their order, such as `>= 1.2.3, < 2`.
///
/// Written as Cargo's requirements are, but read otherwise: for Cargo `>= 0.9` has no `0.10.0-rc.1`,
/// since nobody wants to be given a pre-release unasked. Here it has, since it comes later.
///
/// Only a bound that is excluded takes its own pre-releases along: `< 0.10.0` has no `0.10.0-rc.1`,
/// which is made of what became 0.10.0, but `< 0.10.0-rc.2` has. Ranges name what is safe, so the
/// doubt counts against a version.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    text: String,
    /// All of them hold.
    parts: Vec<(Bound<Version>, Bound<Version>)>,
}

impl Range {
    pub fn contains(&self, version: &Version) -> bool {
        self.parts.iter().all(|(from, to)| {
            let from = match from {
                Bound::Included(from) => version.cmp_precedence(from) != Ordering::Less,
                Bound::Excluded(from) => version.cmp_precedence(from) == Ordering::Greater,
                Bound::Unbounded => true,
            };
            let to = match to {
                Bound::Included(to) => version.cmp_precedence(to) != Ordering::Greater,
                Bound::Excluded(to) => version.cmp_precedence(to) == Ordering::Less,
                Bound::Unbounded => true,
            };
            from && to
        })
    }
}

impl TryFrom<String> for Range {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        let parts =
            VersionReq::parse(&text)?.comparators.iter().map(bounds).collect::<Result<_, _>>()?;
        Ok(Self { text, parts })
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.text
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

fn bounds(comparator: &Comparator) -> anyhow::Result<(Bound<Version>, Bound<Version>)> {
    let Comparator { op, major, minor, patch, .. } = *comparator;
    let named = Version {
        major,
        minor: minor.unwrap_or(0),
        patch: patch.unwrap_or(0),
        pre: comparator.pre.clone(),
        build: BuildMetadata::EMPTY,
    };
    // The first version that is none of `1` or `1.2`; a whole version ends with itself.
    let end = match (minor, patch) {
        (None, _) => Some(Version::new(major + 1, 0, 0)),
        (Some(minor), None) => Some(Version::new(major, minor + 1, 0)),
        (Some(_), Some(_)) => None,
    };
    Ok(match (op, end) {
        (Op::Exact, None) => (Bound::Included(named.clone()), Bound::Included(named)),
        (Op::Exact | Op::Wildcard, Some(end)) => (Bound::Included(named), below(end)),
        (Op::Greater, None) => (Bound::Excluded(named), Bound::Unbounded),
        (Op::Greater, Some(end)) => (Bound::Included(end), Bound::Unbounded),
        (Op::GreaterEq, _) => (Bound::Included(named), Bound::Unbounded),
        (Op::Less, _) => (Bound::Unbounded, below(named)),
        (Op::LessEq, None) => (Bound::Unbounded, Bound::Included(named)),
        (Op::LessEq, Some(end)) => (Bound::Unbounded, below(end)),
        (Op::Tilde, end) => {
            let end = end.unwrap_or(Version::new(major, named.minor + 1, 0));
            (Bound::Included(named), below(end))
        }
        (Op::Caret, _) => {
            let end = match (major, minor, patch) {
                (0, Some(0), Some(patch)) => Version::new(0, 0, patch + 1),
                (0, Some(minor), _) => Version::new(0, minor + 1, 0),
                (major, ..) => Version::new(major + 1, 0, 0),
            };
            (Bound::Included(named), below(end))
        }
        (op, _) => anyhow::bail!("nobody here knows what {op:?} means"),
    })
}

/// All below a version; if that is a whole one, below its pre-releases, of which `-0` is the first.
fn below(mut version: Version) -> Bound<Version> {
    if version.pre.is_empty() {
        version.pre = Prerelease::new("0").unwrap_or_default();
    }
    Bound::Excluded(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_what_its_author_means() {
        has(">= 1.2.3, < 2", &["1.2.3", "1.2.4", "1.99.0"], &["1.2.2", "2.0.0", "3.0.0"]);
        has("< 0.10.0, >= 0.9.3", &["0.9.3", "0.9.5"], &["0.9.2", "0.10.0", "0.10.4"]);
        has(">= 2", &["2.0.0", "2.0.1", "11.0.0"], &["1.9.9"]);
        has("> 1.2", &["1.3.0"], &["1.2.0", "1.2.9"]);
        has("> 1.2.3", &["1.2.4"], &["1.2.3"]);
        has("<= 0.22", &["0.1.0", "0.22.9"], &["0.23.0"]);
        has("<= 0.1.37", &["0.1.37"], &["0.1.38"]);
        has("=0.2.0", &["0.2.0"], &["0.2.1", "0.1.9"]);
        has("= 1.2", &["1.2.0", "1.2.7"], &["1.1.9", "1.3.0"]);
        has("1.2.*", &["1.2.0", "1.2.7"], &["1.1.9", "1.3.0"]);
        has("*", &["0.0.1", "7.0.0", "1.0.0-rc.1"], &[]);
        has("~1.5.1", &["1.5.1", "1.5.9"], &["1.5.0", "1.6.0"]);
        has("~1", &["1.0.0", "1.9.0"], &["0.9.0", "2.0.0"]);
    }

    #[test]
    fn a_caret_ends_where_versions_stop_to_be_compatible() {
        has("^ 0.24.3", &["0.24.3", "0.24.9"], &["0.24.2", "0.25.0", "0.25.0-alpha.1"]);
        has("0.13.10", &["0.13.10", "0.13.11"], &["0.13.9", "0.14.0"]);
        has("^0.0.3", &["0.0.3"], &["0.0.2", "0.0.4"]);
        has("^1.8.1", &["1.8.1", "1.54.0"], &["1.8.0", "2.0.0"]);
        has("^0", &["0.0.1", "0.9.0"], &["1.0.0"]);
    }

    #[test]
    fn a_pre_release_comes_before_its_version_and_after_all_others() {
        has(">= 0.9.9", &["0.10.0-rc.18", "0.10.0"], &["0.9.9-rc.1"]);
        has(">= 0.10.0", &["0.10.0", "0.11.0-pre.1"], &["0.10.0-rc.18"]);
        has(
            ">= 0.25.0-alpha.5",
            &["0.25.0-alpha.5", "0.25.0-beta.1", "0.25.0"],
            &["0.25.0-alpha.4"],
        );
        has(">= 0.2.8, < 0.3.0-rc.1", &["0.2.8", "0.3.0-alpha.1"], &["0.3.0-rc.1", "0.3.0"]);
        has("= 1.0.0-rc.2", &["1.0.0-rc.2"], &["1.0.0-rc.1", "1.0.0"]);
    }

    #[test]
    fn what_is_below_a_version_is_none_of_its_pre_releases() {
        has("< 0.10.0", &["0.9.9", "0.9.10-rc.1"], &["0.10.0-0", "0.10.0-rc.1", "0.10.0"]);
        has("< 0.10.0-rc.2", &["0.10.0-rc.1"], &["0.10.0-rc.2"]);
        has(">= 1.2.3, < 2", &["1.3.0-beta.1"], &["2.0.0-alpha.1"]);
    }

    #[test]
    fn what_a_build_is_called_is_no_part_of_its_order() {
        has("<= 1.2.1", &["1.2.1+spec-1.1.0"], &["1.2.2+spec-1.1.0"]);
        has(">= 1.2.1", &["1.2.1+spec-1.1.0"], &["1.2.0+spec-1.1.0"]);
    }

    #[test]
    fn nonsense_is_no_range() {
        for text in ["", "newer", ">= 1.2.3.4", ">="] {
            Range::try_from(text.to_owned()).expect_err(text);
        }
    }

    fn has(text: &str, inside: &[&str], outside: &[&str]) {
        let range = Range::try_from(text.to_owned()).unwrap();
        for (versions, expected) in [(inside, true), (outside, false)] {
            for version in versions {
                let parsed = Version::parse(version).unwrap();
                assert_eq!(range.contains(&parsed), expected, "{version} in {text}");
            }
        }
    }
}
