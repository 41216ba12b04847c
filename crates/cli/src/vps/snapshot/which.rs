//! The command line's notation for a snapshot of a VPS.

use std::fmt;
use std::str::FromStr;

use kohakuriver_api::{ErrorBody, Snapshot};

use crate::error::CommandError;

/// The name of the newest snapshot.
pub const LATEST: &str = "latest";
/// Maximum length of a tag, which is a number of seconds since 1970.
const LONGEST_TAG: usize = 20;
const LONGEST_NAME: usize = 63;

/// A snapshot's tag, its name, or `latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which(String);

#[derive(Debug, thiserror::Error)]
#[error(
    "write a snapshot's tag, its name, or latest; `kohakuriver vps snapshot list VPS` shows them"
)]
pub struct NotASnapshot;

impl Which {
    /// Finds the snapshot in a list with the newest first.
    pub fn among<'a>(&self, list: &'a [Snapshot], vps: &str) -> Result<&'a Snapshot, CommandError> {
        let tagged = list.iter().find(|snapshot| snapshot.tag == self.0);
        let found = tagged.or_else(|| match self.0.as_str() {
            LATEST => list.first(),
            name => list.iter().find(|snapshot| snapshot.name.as_deref() == Some(name)),
        });
        found.ok_or_else(|| {
            let (detail, hint) = if list.is_empty() {
                (
                    format!("VPS {vps} has no snapshot"),
                    format!("`kohakuriver vps snapshot create {vps}` creates one"),
                )
            } else {
                (
                    format!("VPS {vps} has no snapshot {self}"),
                    format!("`kohakuriver vps snapshot list {vps}` shows its snapshots"),
                )
            };
            CommandError::not_found(ErrorBody {
                detail,
                code: "not_found".to_owned(),
                hint: Some(hint),
            })
        })
    }
}

impl FromStr for Which {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<Self, NotASnapshot> {
        let tag = text.len() <= LONGEST_TAG && text.bytes().all(|b| b.is_ascii_digit());
        if !text.is_empty() && tag || is_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(NotASnapshot)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses the name of a new snapshot.
pub fn new_name(text: &str) -> Result<String, String> {
    if text == LATEST {
        return Err("the name latest is reserved for the newest snapshot".to_owned());
    }
    if !is_name(text) {
        return Err("use lower-case letters, digits and hyphens, starting with a letter".to_owned());
    }
    Ok(text.to_owned())
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    starts_well && text.bytes().all(plain) && text.len() <= LONGEST_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(tag: &str, name: Option<&str>) -> Snapshot {
        Snapshot { tag: tag.to_owned(), name: name.map(str::to_owned), ..Snapshot::default() }
    }

    #[test]
    fn snapshot_is_found_by_tag_by_name_and_as_latest() {
        let list = [snapshot("30", None), snapshot("20", Some("clean")), snapshot("10", None)];
        for (word, tag) in [("latest", "30"), ("clean", "20"), ("10", "10")] {
            let which: Which = word.parse().unwrap();
            assert_eq!(which.among(&list, "web").unwrap().tag, tag, "{word}");
        }
        let absent: Which = "40".parse().unwrap();
        let failure = absent.among(&list, "web").unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.hint.unwrap().contains("snapshot list web"));
        let failure = absent.among(&[], "web").unwrap_err();
        assert!(failure.hint.unwrap().contains("snapshot create web"));
    }

    #[test]
    fn text_that_changes_a_path_is_no_snapshot() {
        for bad in ["", "..", "a/b", "a?b", "-x", "A", "1a", "%2e", "a b", &"1".repeat(21)] {
            assert!(bad.parse::<Which>().is_err(), "{bad:?}");
        }
        assert!(new_name("latest").is_err() && new_name("1").is_err());
        assert!(new_name("before-upgrade").is_ok());
    }
}
