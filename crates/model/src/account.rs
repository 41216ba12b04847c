//! Accounts: roles, quotas and share levels. What follows from them is decided in one place, the
//! host's `access` module.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::InstanceSpec;

/// An account's number. Numbers are never reused, so that nothing of a deleted account passes to
/// another account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub i64);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An account's role in the cluster. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A caller without an account.
    Anony,
    /// Reads only.
    Viewer,
    /// Has instances, once an operator approved them.
    User,
    /// Creates instances and runs the cluster.
    Operator,
    /// Full control.
    Admin,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Anony, Self::Viewer, Self::User, Self::Operator, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anony => "anony",
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The level of a share. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareLevel {
    /// Sees the instance and its status.
    View,
    /// Enters it: SSH, terminals, forwards, files.
    Use,
    /// Also starts, stops, changes and snapshots it.
    Manage,
}

impl ShareLevel {
    pub const ALL: [Self; 3] = [Self::View, Self::Use, Self::Manage];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Use => "use",
            Self::Manage => "manage",
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccountError {
    #[error("'{0}' is not a role: use viewer, user, operator or admin")]
    Role(String),
    #[error("'{0}' is not a share level: use view, use or manage")]
    Level(String),
    #[error(
        "'{0}' is not a user name: use 1 to 50 letters, digits, dots, hyphens and underscores, starting with a letter or digit"
    )]
    UserName(String),
    #[error("'{0}' is reserved for the system in event logs; choose another name")]
    Reserved(String),
    #[error(
        "'{0}' is not a group name: use 1 to 50 letters, digits, dots, hyphens and underscores, starting with a letter or digit"
    )]
    GroupName(String),
}

impl FromStr for Role {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| AccountError::Role(text.to_owned()))
    }
}

impl FromStr for ShareLevel {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == text);
        found.ok_or_else(|| AccountError::Level(text.to_owned()))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for ShareLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Names that events and logs use for the system itself, or for callers without an account.
const RESERVED: [&str; 9] = [
    "agent",
    "anonymous",
    "everybody",
    "host",
    "kohakuriver",
    "nobody",
    "node",
    "runner",
    "system",
];

/// Checks whether an account of this name could be taken for the system in events.
pub fn is_reserved_name(text: &str) -> bool {
    RESERVED.iter().any(|name| name.eq_ignore_ascii_case(text))
}

/// Validates the name of a new account. It appears in SSH commands, tables and certificates.
/// Accounts from before a name was reserved keep it.
pub fn user_name(text: &str) -> Result<String, AccountError> {
    if !is_user_name(text) {
        return Err(AccountError::UserName(text.to_owned()));
    }
    if is_reserved_name(text) {
        return Err(AccountError::Reserved(text.to_owned()));
    }
    Ok(text.to_owned())
}

/// Checks whether an account can have been given this name.
pub fn is_user_name(text: &str) -> bool {
    is_name(text)
}

pub fn group_name(text: &str) -> Result<String, AccountError> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(AccountError::GroupName(text.to_owned())) }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=50).contains(&text.len())
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        // Names that mean "an unchecked caller".
        && !text.starts_with('_')
}

/// The limits of an account or a whole group. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// Existing instances, running or not.
    pub instances: Option<u64>,
    /// Of running instances.
    pub cores: Option<u64>,
    /// Of running instances.
    pub memory_bytes: Option<u64>,
    /// Of running instances.
    pub gpus: Option<u64>,
    /// GPUs times hours within the last 30 days.
    pub gpu_hours: Option<u64>,
    /// Disks of existing virtual machines. A container's disk has no countable size.
    pub disk_bytes: Option<u64>,
}

/// Current usage, in the quota's units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    pub instances: u64,
    pub cores: u64,
    pub memory_bytes: u64,
    pub gpus: u64,
    pub gpu_hours: u64,
    pub disk_bytes: u64,
    /// Running instances without a limit of cores, or of memory.
    pub without_core_limit: u64,
    pub without_memory_limit: u64,
}

impl Holdings {
    /// The usage that an instance adds when it is created or started.
    pub fn of(spec: &InstanceSpec, is_new: bool) -> Self {
        Self {
            instances: u64::from(is_new),
            cores: u64::from(spec.cores),
            memory_bytes: spec.memory_bytes.unwrap_or(0),
            gpus: spec.gpus.len() as u64,
            gpu_hours: 0,
            disk_bytes: if is_new { spec.vm_disk_bytes.unwrap_or(0) } else { 0 },
            without_core_limit: u64::from(spec.cores == 0),
            without_memory_limit: u64::from(spec.memory_bytes.is_none()),
        }
    }
}

/// The reason why a quota rejects a demand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    #[error("{whose} allows {limit} {what}: {held} in use, {asked} more requested")]
    TooMuch { whose: String, what: &'static str, limit: String, held: String, asked: String },
    #[error("{whose} limits {what}, so the request must set a limit")]
    Unlimited { whose: String, what: &'static str },
}

impl Quota {
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Checks whether `asked` may be added to `held`. `whose` begins the error's sentence.
    pub fn check(&self, whose: &str, held: &Holdings, asked: &Holdings) -> Result<(), OverQuota> {
        if self.cores.is_some() && asked.without_core_limit > 0 {
            return Err(OverQuota::Unlimited { whose: whose.to_owned(), what: "cores" });
        }
        if self.memory_bytes.is_some() && asked.without_memory_limit > 0 {
            return Err(OverQuota::Unlimited { whose: whose.to_owned(), what: "memory" });
        }
        let plain = |number: u64| number.to_string();
        let bytes = |number: u64| crate::Memory::from_bytes(number).to_string();
        let rows: [(_, _, _, _, &dyn Fn(u64) -> String); 5] = [
            (self.instances, held.instances, asked.instances, "instances", &plain),
            (self.cores, held.cores, asked.cores, "cores", &plain),
            (self.memory_bytes, held.memory_bytes, asked.memory_bytes, "of memory", &bytes),
            (self.gpus, held.gpus, asked.gpus, "GPUs", &plain),
            (self.disk_bytes, held.disk_bytes, asked.disk_bytes, "of disk", &bytes),
        ];
        for (limit, held, asked, what, text) in rows {
            if let Some(limit) = limit
                && asked > 0
                && held.saturating_add(asked) > limit
            {
                return Err(OverQuota::TooMuch {
                    whose: whose.to_owned(),
                    what,
                    limit: text(limit),
                    held: text(held),
                    asked: text(asked),
                });
            }
        }
        if let Some(limit) = self.gpu_hours
            && asked.gpus > 0
            && held.gpu_hours >= limit
        {
            return Err(OverQuota::TooMuch {
                whose: whose.to_owned(),
                what: "GPU-hours in 30 days",
                limit: plain(limit),
                held: plain(held.gpu_hours),
                asked: "some".to_owned(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::ImageSource;

    #[test]
    fn every_role_and_level_round_trips() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        for level in ShareLevel::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
        }
    }

    #[test]
    fn names_have_no_shell_or_path_characters() {
        for bad in ["", "_system", "-x", "a b", "a/b", "a\n", "ä", &"x".repeat(51)] {
            assert!(user_name(bad).is_err(), "{bad:?}");
        }
        for good in ["alice", "A.B-c_d", "7", "hosts", "root"] {
            assert!(user_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn new_accounts_cannot_take_system_names() {
        for reserved in ["host", "Anonymous", "node", "SYSTEM", "runner"] {
            assert_eq!(user_name(reserved), Err(AccountError::Reserved(reserved.to_owned())));
            assert!(is_user_name(reserved), "an account from earlier may have it");
        }
    }

    #[test]
    fn core_quota_requires_a_core_limit() {
        let quota = Quota { cores: Some(8), ..Quota::default() };
        let asked = Holdings::of(&InstanceSpec::new(ImageSource::Default), true);
        let error = quota.check("your quota", &Holdings::default(), &asked).unwrap_err();
        assert_eq!(error.to_string(), "your quota limits cores, so the request must set a limit");
    }

    proptest! {
        #[test]
        fn accepted_demand_never_exceeds_quota(
            limit in proptest::option::of(0u64..50),
            wishes in proptest::collection::vec((0u64..20, 0u64..5), 0..20),
        ) {
            let quota = Quota { cores: limit, gpus: limit, ..Quota::default() };
            let mut held = Holdings::default();
            for (cores, gpus) in wishes {
                let asked = Holdings { cores, gpus, ..Holdings::default() };
                if quota.check("the quota", &held, &asked).is_ok() {
                    held.cores += cores;
                    held.gpus += gpus;
                }
            }
            if let Some(limit) = limit {
                prop_assert!(held.cores <= limit && held.gpus <= limit);
            }
        }
    }
}
