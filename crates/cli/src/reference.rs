//! References to a VPS on the command line.

use std::fmt;
use std::str::FromStr;

use kohakuriver_api::Task;
use kohakuriver_model::{InstanceName, QualifiedName};

/// An id, the beginning of an id, a name, or another account's `NAME.OWNER`; the host resolves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpsRef(String);

#[derive(Debug, thiserror::Error)]
#[error(
    "write a VPS's id, the first digits of it, its name, or NAME.OWNER where it is another's; `kohakuriver vps list -a` shows them"
)]
pub struct NotAReference;

impl VpsRef {
    /// Returns the reference that never matches another VPS.
    pub fn of(task: &Task) -> Self {
        Self(task.task_id.clone())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VpsRef {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let id = !text.is_empty() && text.len() <= 19 && text.bytes().all(|b| b.is_ascii_digit());
        // What `ssh config` calls it; no name begins so.
        if let Some(id) = text.strip_prefix("kohakuriver-vps-") {
            return id.parse();
        }
        let is_name = text.parse::<InstanceName>().is_ok() || text.parse::<QualifiedName>().is_ok();
        if id || is_name { Ok(Self(text.to_owned())) } else { Err(NotAReference) }
    }
}

impl fmt::Display for VpsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_cannot_change_a_path() {
        for bad in [
            "", "..", "a/b", "a?b", "-x", "A", "12a", "%2e", "a b", "web.", ".ann", "a.b/c", "a..b",
        ] {
            assert!(bad.parse::<VpsRef>().is_err(), "{bad:?}");
        }
        for good in ["7", "7398213345412345856", "web", "a-1", "web.ann", "web.J.Doe"] {
            assert_eq!(good.parse::<VpsRef>().unwrap().as_str(), good);
        }
    }
}
