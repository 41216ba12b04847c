//! What an instance is made of: fixed at creation, stored by the host, sent to the runner.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::InstanceName;

/// The most processes a container may have at once unless its creator says otherwise; enough for
/// any workload seen, and a fork bomb stays inside.
pub const DEFAULT_PIDS_LIMIT: u32 = 32_768;

/// The specification of one VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub name: Option<InstanceName>,
    pub image: ImageSource,
    /// 0 means no limit.
    pub cores: u32,
    /// Bytes; `None` means no limit.
    pub memory_bytes: Option<u64>,
    pub pids_limit: u32,
    /// `None`: created without `--ssh`.
    pub ssh: Option<SshAccess>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Where the root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ImageSource {
    /// An image of the runner's Docker engine, pulled from its registry where it is absent.
    Registry { reference: String },
    /// An environment tarball in shared storage, `<name>-<unix seconds>.tar`.
    Environment { name: String },
    /// The base environment, which the runner makes where nobody else did.
    Default,
}

/// How people get in by SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// Lines of `authorized_keys`.
    pub authorized_keys: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    #[error("'{0}' is not an image reference: write it as Docker does, for example debian:12")]
    Reference(String),
    #[error("'{0}' is not an environment name: use letters, digits, dots, hyphens and underscores")]
    Environment(String),
}

impl ImageSource {
    /// Checks what goes to Docker's API, so that a reference cannot be anything else.
    pub fn registry(text: &str) -> Result<Self, ImageError> {
        let plain = text.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b'@')
        });
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !plain
            || !starts_well
            || text.len() > 255
            || text.contains("..")
            || text.ends_with(['/', ':', '@'])
        {
            return Err(ImageError::Reference(text.to_owned()));
        }
        let last = text.rsplit('/').next().unwrap_or(text);
        let reference =
            if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:latest") };
        Ok(Self::Registry { reference })
    }

    /// The name becomes part of a file name, so it may hold no path.
    pub fn environment(name: &str) -> Result<Self, ImageError> {
        let plain =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !plain || !starts_well || name.len() > 64 || name.contains("..") {
            return Err(ImageError::Environment(name.to_owned()));
        }
        Ok(Self::Environment { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_means_latest() {
        let reference = |text| match ImageSource::registry(text) {
            Ok(ImageSource::Registry { reference }) => reference,
            other => panic!("{other:?}"),
        };
        assert_eq!(reference("debian"), "debian:latest");
        assert_eq!(reference("debian:12"), "debian:12");
        assert_eq!(reference("reg.lab:5000/a/b"), "reg.lab:5000/a/b:latest");
        assert_eq!(reference("a@sha256:00"), "a@sha256:00");
    }

    #[test]
    fn names_cannot_walk_out_of_their_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "-x", "a\0"] {
            assert!(ImageSource::environment(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "-v", "../x", "a b", "a\n", "x/"] {
            assert!(ImageSource::registry(bad).is_err(), "{bad:?}");
        }
    }
}
