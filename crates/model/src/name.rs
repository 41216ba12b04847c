//! Names of instances and nodes. Both appear in host names, file names and SSH configuration, so
//! both are limited to letters, digits, dots and hyphens.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::account::user_name;

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
        "'{0}' is not a VM image name: use lower-case letters, digits, dots and hyphens, starting with a letter or digit"
    )]
    VmImageCharacters(String),
    #[error("'{0}' is reserved in SSH configuration; choose another name for the VPS")]
    Reserved(String),
    #[error("'{0}' is not NAME.OWNER: write a VPS's name, a dot, and its owner's user name")]
    Qualified(String),
}

/// A VPS's name. It starts with a letter, so that it differs from any id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

/// Names that every computer has in `/etc/hosts`, or that have a meaning in OpenSSH's
/// configuration: a VPS of this name would get connections meant for another host.
const RESERVED: &[&str] = &[
    "broadcasthost",
    "ip6-allhosts",
    "ip6-allnodes",
    "ip6-allrouters",
    "ip6-localhost",
    "ip6-localnet",
    "ip6-loopback",
    "ip6-mcastprefix",
    "kohakuriver",
    "localdomain",
    "localhost",
    "localhost4",
    "localhost6",
    "loopback",
    "none",
];

/// The prefix of the aliases that `ssh config` writes for every VPS.
const ALIAS_PREFIX: &str = "kohakuriver-";

impl InstanceName {
    /// Checks whether the name is refused for new VPSes. An older VPS keeps it, and this program's
    /// commands accept it; it is left out of SSH configuration.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(ALIAS_PREFIX) || RESERVED.contains(&self.0.as_str())
    }

    /// Parses the name of a new VPS.
    ///
    /// # Errors
    /// It is not a name, or reserved.
    pub fn for_new(text: &str) -> Result<Self, NameError> {
        let name: Self = text.parse()?;
        if name.is_reserved() { Err(NameError::Reserved(name.0)) } else { Ok(name) }
    }
}

/// An account's reference to another's VPS: `NAME.OWNER`. A VPS's name has no dot, so the first dot
/// ends it, whatever the account's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QualifiedName {
    pub name: InstanceName,
    pub owner: String,
}

impl FromStr for QualifiedName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let damaged = || NameError::Qualified(text.to_owned());
        let (name, owner) = text.split_once('.').ok_or_else(damaged)?;
        let name = name.parse().map_err(|_| damaged())?;
        let owner = user_name(owner).map_err(|_| damaged())?;
        Ok(Self { name, owner })
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.owner)
    }
}

/// A node's name: its host name unless the operator chose another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A base image of virtual machines. It becomes part of file names, so it contains no path.
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
    fn instance_name_differs_from_ids_and_options() {
        for bad in ["", "7", "7abc", "-x", "x-", "Abc", "a b", "a/b", "a.b", "a;b", &"x".repeat(64)]
        {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for good in ["a", "web", "my-vps-2"] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn reserved_names_parse_but_are_refused_for_new_vpses() {
        for text in ["localhost", "none", "ip6-loopback", "kohakuriver-vps-7"] {
            let old: InstanceName = serde_json::from_str(&format!("\"{text}\"")).unwrap();
            assert!(old.is_reserved(), "{text}");
            assert_eq!(InstanceName::for_new(text), Err(NameError::Reserved(text.to_owned())));
        }
        assert!(InstanceName::for_new("local-host").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn qualified_names_round_trip(
            name in "[a-z]([a-z0-9-]{0,8}[a-z0-9])?",
            owner in "[A-Za-z0-9][A-Za-z0-9._-]{0,12}",
        ) {
            let text = format!("{name}.{owner}");
            let read: QualifiedName = text.parse().unwrap();
            assert_eq!((read.name.as_str(), read.owner.as_str()), (name.as_str(), owner.as_str()));
            assert_eq!(read.to_string(), text);
        }

        #[test]
        fn qualified_names_have_no_ssh_syntax(text in "\\PC{0,40}|[a-z]{1,3}[.][ *?!,\n\"a-z]{1,5}") {
            if let Ok(read) = text.parse::<QualifiedName>() {
                assert!(read.to_string().bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
            }
        }
    }

    #[test]
    fn node_name_has_no_colon() {
        assert!("node:1".parse::<NodeName>().is_err());
        assert!("gpu-01.lab".parse::<NodeName>().is_ok());
    }
}
