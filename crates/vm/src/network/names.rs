//! Names that the kernel, `ip` and `nft` are given: nothing else gets into their scripts.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use kohakuriver_model::InstanceId;
use sha2::{Digest, Sha256};

/// What a name of a network device may have, without the NUL.
const LONGEST: usize = 15;
const TAP_PREFIX: &str = "kr";
const TAP_DIGITS: usize = LONGEST - TAP_PREFIX.len();
const BASE: u64 = 36;

/// The name of a bridge of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeName(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a bridge's name is 1 to {LONGEST} of a-z, 0-9 and '-', beginning with a letter")]
pub struct ParseBridgeNameError;

impl BridgeName {
    /// That of a node's containers, unless its owner says otherwise.
    pub fn of_containers() -> Self {
        Self("kohakuriver".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the rules of this bridge are called, in each family of tables.
    pub(crate) fn table(&self) -> String {
        format!("kohakuriver-{}", self.0)
    }
}

impl Default for BridgeName {
    fn default() -> Self {
        Self("kohaku-br0".to_owned())
    }
}

impl FromStr for BridgeName {
    type Err = ParseBridgeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        // It must not look like one of our TAPs either.
        if !begins || text.len() > LONGEST || !text.chars().all(known) || tap_owner(text).is_some()
        {
            return Err(ParseBridgeNameError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells this runner's devices from those of another runner on the same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(String);

impl Owner {
    /// One runner at a time has a data directory.
    pub fn of(data_dir: &Path) -> Self {
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        Self(HEXLOWER.encode(&digest[..8]))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The TAP of an instance: its id, written so that it fits. No two ids share a name.
pub fn tap_name(id: InstanceId) -> String {
    let mut rest = id.as_u64();
    let mut digits = [b'0'; TAP_DIGITS];
    for digit in digits.iter_mut().rev() {
        let value = u32::try_from(rest % BASE).unwrap_or(0);
        *digit = char::from_digit(value, 36).map_or(b'0', |c| c as u8);
        rest /= BASE;
    }
    format!("{TAP_PREFIX}{}", String::from_utf8_lossy(&digits))
}

/// Whose TAP that is, if it is one's.
pub fn tap_owner(name: &str) -> Option<InstanceId> {
    let digits = name.strip_prefix(TAP_PREFIX)?;
    let known = digits.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    if digits.len() != TAP_DIGITS || !known {
        return None;
    }
    let id = u64::from_str_radix(digits, 36).ok()?;
    (1..=i64::MAX as u64).contains(&id).then(|| InstanceId::from_u64(id))
}

/// Whether a device that is not ours may be named in a script: the kernel allows quotes.
pub(crate) fn is_plain_device(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '@');
    (1..=LONGEST).contains(&name.len()) && name.chars().all(known)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tap_is_named_after_one_instance_and_fits(id in 1..=i64::MAX as u64) {
            let name = tap_name(InstanceId::from_u64(id));
            prop_assert!(name.len() <= LONGEST && is_plain_device(&name));
            prop_assert_eq!(tap_owner(&name), Some(InstanceId::from_u64(id)));
        }

        #[test]
        fn no_other_name_is_taken_for_a_tap(name in "\\PC{0,16}|kr[0-9a-zA-Z]{0,14}") {
            if let Some(id) = tap_owner(&name) {
                prop_assert_eq!(tap_name(id), name);
            }
        }

        #[test]
        fn a_bridges_name_is_safe_in_a_script(name in "\\PC{0,20}|[a-z][a-z0-9-]{0,16}") {
            if let Ok(bridge) = name.parse::<BridgeName>() {
                prop_assert!(is_plain_device(bridge.as_str()));
                prop_assert_eq!(bridge.as_str(), name);
            }
        }
    }

    #[test]
    fn names_that_could_be_something_else_are_refused() {
        for bad in
            ["", "Br0", "0br", "br 0", "br0;", "br0\"", "a234567890123456", "kr0000000000001"]
        {
            assert!(bad.parse::<BridgeName>().is_err(), "{bad:?}");
        }
        assert!("kohaku-br0".parse::<BridgeName>().is_ok());
        assert_ne!(Owner::of(Path::new("/a")), Owner::of(Path::new("/b")));
    }
}
