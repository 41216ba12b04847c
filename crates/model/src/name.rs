//! Names of instances and nodes. Both appear in host names, file names and SSH configuration,
//! so both keep to letters, digits, dot and hyphen.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("a name has 1 to 63 characters")]
    Length,
    #[error(
        "'{0}' is not a name: use lower-case letters, digits and hyphens, starting with a letter"
    )]
    InstanceCharacters(String),
    #[error(
        "'{0}' is not a node name: use letters, digits, hyphens and dots, starting with a letter or digit"
    )]
    NodeCharacters(String),
    #[error(
        "'{0}' is not a name of a VM image: use lower-case letters, digits, dots and hyphens, starting with a letter or digit"
    )]
    VmImageCharacters(String),
}

/// A VPS's name. It starts with a letter, so that it can never be taken for an id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// A node's name, its machine's host name unless the operator chose another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A base image of virtual machines. It becomes a part of file names, so it holds no path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmImageName(String);

impl FromStr for VmImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > 63 {
            return Err(NameError::Length);
        }
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !plain || !starts_well || text.contains("..") || text.ends_with('.') {
            return Err(NameError::VmImageCharacters(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > 63 {
            return Err(NameError::Length);
        }
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !plain || !text.as_bytes()[0].is_ascii_lowercase() || text.ends_with('-') {
            return Err(NameError::InstanceCharacters(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > 63 {
            return Err(NameError::Length);
        }
        let plain =
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if !plain || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(NameError::NodeCharacters(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_conversions!(InstanceName);
text_conversions!(NodeName);
text_conversions!(VmImageName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_name_can_never_be_an_id_or_an_option() {
        for bad in ["", "7", "7abc", "-x", "x-", "Abc", "a b", "a/b", "a.b", "a;b", &"x".repeat(64)]
        {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for good in ["a", "web", "my-vps-2"] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_node_name_has_no_colon_so_targets_stay_clear() {
        assert!("node:1".parse::<NodeName>().is_err());
        assert!("gpu-01.lab".parse::<NodeName>().is_ok());
    }
}
