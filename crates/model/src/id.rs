//! Ids of instances (tasks in the API) and nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instance's id: `(unix milliseconds << 22) | (cluster << 12) | sequence`, currently 19 decimal
/// digits.
///
/// In JSON it is a string, because JavaScript numbers have 53 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u64);

impl InstanceId {
    /// Creates the id for a time and a cluster: two clusters that share a Docker engine (a test
    /// beside production) should not use the same container names. The store increases it if it was
    /// used before.
    pub const fn at(now_ms: u64, cluster: u16) -> Self {
        Self((now_ms << 22) | ((cluster as u64 & 0x3ff) << 12))
    }

    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The database's integers are signed; ids stay below 2^63 until the year 2039.
    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a task id is a positive decimal number, for example 7398213345412345856")]
pub struct ParseTaskIdError;

impl FromStr for InstanceId {
    type Err = ParseTaskIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseTaskIdError);
        }
        match text.parse::<u64>() {
            Ok(value) if value > 0 && value <= i64::MAX as u64 => Ok(Self(value)),
            _ => Err(ParseTaskIdError),
        }
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A node's id, assigned by the host at enrollment and never reused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(String);

impl NodeId {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn later_id_is_larger_across_clusters() {
        assert!(InstanceId::at(1_790_000_000_001, 0) > InstanceId::at(1_790_000_000_000, u16::MAX));
        assert_eq!(InstanceId::at(1_790_000_000_000, 7).to_string().len(), 19);
    }

    proptest! {
        #[test]
        fn id_round_trips_through_text_and_json(value in 1u64..i64::MAX as u64) {
            let id = InstanceId::from_u64(value);
            prop_assert_eq!(id.to_string().parse::<InstanceId>(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&json, &format!("\"{value}\""));
            prop_assert_eq!(serde_json::from_str::<InstanceId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn invalid_id_text_is_refused() {
        for bad in ["", "0", "-1", "+5", "1e3", "9223372036854775808", "99999999999999999999", " 1"]
        {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad:?}");
        }
    }
}
