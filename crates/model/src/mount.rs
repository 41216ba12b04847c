//! Directories of a node that are mounted into a container.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// More is a misuse.
pub const MOST_MOUNTS: usize = 16;
const LONGEST: usize = 1024;
/// Paths managed by us or by the engine; nothing is mounted over or into them.
const RESERVED: [&str; 5] = ["/.kohakuriver", "/shared", "/proc", "/sys", "/dev"];

/// A mount: a path of the node, and its path inside. Written `SOURCE:TARGET[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountWish {
    source: String,
    target: String,
    read_only: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    #[error("'{0}' is not a mount: write SOURCE:TARGET, or SOURCE:TARGET:ro, with absolute paths")]
    Form(String),
    #[error("'{0}' is not a plain path: start it with '/', without '..', '.' or empty parts")]
    Path(String),
    #[error("cannot mount at {0}: the VPS itself uses it")]
    Reserved(String),
    #[error("too many mounts: at most {MOST_MOUNTS}")]
    TooMany,
    #[error("two mounts have the target {0}")]
    Twice(String),
}

impl MountWish {
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Parses all mounts of an instance.
    ///
    /// # Errors
    /// One of them is invalid, or they conflict.
    pub fn parse_all<T: AsRef<str>>(texts: &[T]) -> Result<Vec<Self>, MountError> {
        if texts.len() > MOST_MOUNTS {
            return Err(MountError::TooMany);
        }
        let mounts: Vec<Self> =
            texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>()?;
        for (at, mount) in mounts.iter().enumerate() {
            if mounts[..at].iter().any(|other| other.target == mount.target) {
                return Err(MountError::Twice(mount.target.clone()));
            }
        }
        Ok(mounts)
    }
}

impl FromStr for MountWish {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let form = || MountError::Form(text.chars().take(200).collect());
        let mut words = text.split(':');
        let (Some(source), Some(target)) = (words.next(), words.next()) else {
            return Err(form());
        };
        let read_only = match (words.next(), words.next()) {
            (None, _) | (Some("rw"), None) => false,
            (Some("ro"), None) => true,
            (Some(_), _) => return Err(form()),
        };
        let (source, target) = (plain(source)?, plain(target)?);
        if target == "/" || RESERVED.iter().any(|place| is_within(&target, place)) {
            return Err(MountError::Reserved(target));
        }
        Ok(Self { source, target, read_only })
    }
}

impl fmt::Display for MountWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{mode}", self.source, self.target)
    }
}

impl TryFrom<String> for MountWish {
    type Error = MountError;

    fn try_from(text: String) -> Result<Self, MountError> {
        text.parse()
    }
}

impl From<MountWish> for String {
    fn from(mount: MountWish) -> Self {
        mount.to_string()
    }
}

/// Checks for an unambiguous path, without a `/` at its end.
fn plain(text: &str) -> Result<String, MountError> {
    let path = text.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(text);
    let plain = path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !rest.chars().any(char::is_control)
        });
    if !plain || path.len() > LONGEST {
        return Err(MountError::Path(text.chars().take(200).collect()));
    }
    Ok(path.to_owned())
}

fn is_within(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_round_trips() {
        for text in ["/data:/data", "/data/sets:/mnt/sets:ro", "/:/node:ro"] {
            assert_eq!(text.parse::<MountWish>().unwrap().to_string(), text);
        }
        let mount: MountWish = "/data/:/mnt/:rw".parse().unwrap();
        assert_eq!((mount.to_string().as_str(), mount.read_only()), ("/data:/mnt", false));
    }

    #[test]
    fn ambiguous_paths_are_refused_as_mounts() {
        for bad in [
            "",
            "/a",
            "/a:b",
            "a:/b",
            "/a:/b:rox",
            "/a:/b:ro:x",
            "/a/../b:/c",
            "/a//b:/c",
            "/a/./b:/c",
            "/a:/b/..",
            "/a\n:/b",
            "/a:/b\0",
        ] {
            assert!(bad.parse::<MountWish>().is_err(), "{bad:?}");
        }
        for own in ["/", "/.kohakuriver", "/.kohakuriver/bin/x", "/proc/1", "/dev", "/shared/a"] {
            let error = format!("/data:{own}").parse::<MountWish>().unwrap_err();
            assert_eq!(error, MountError::Reserved(own.to_owned()));
        }
        assert!("/data:/devices".parse::<MountWish>().is_ok());
    }

    #[test]
    fn conflicting_and_too_many_mounts_are_refused() {
        let twice = MountWish::parse_all(&["/a:/m", "/b:/m/"]);
        assert_eq!(twice, Err(MountError::Twice("/m".to_owned())));
        let many: Vec<String> = (0..=MOST_MOUNTS).map(|n| format!("/a:/m{n}")).collect();
        assert_eq!(MountWish::parse_all(&many), Err(MountError::TooMany));
        assert_eq!(MountWish::parse_all(&many[..2]).unwrap().len(), 2);
    }
}
