//! The target grammar `node[:numa][::gpu,gpu]`, parsed only here.

use std::fmt;
use std::str::FromStr;

use crate::name::{NameError, NodeName};

/// The place where a VPS should run. GPU numbers are for people; the host converts them to the
/// cards' identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub node: NodeName,
    pub numa: Option<u32>,
    pub gpus: Vec<u32>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    #[error("'{text}' is not a target: write node, node:numa, node::gpu,gpu or node:numa::gpu,gpu")]
    Malformed { text: String },
    #[error("'{text}' is not a target")]
    Node { text: String, source: NameError },
    #[error("target '{text}' names GPU {gpu} twice")]
    GpuTwice { text: String, gpu: u32 },
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let malformed = || TargetError::Malformed { text: text.to_owned() };
        let (place, gpu_text) = match text.split_once("::") {
            Some((place, gpus)) => (place, Some(gpus)),
            None => (text, None),
        };
        let (node, numa) = match place.split_once(':') {
            Some((node, numa)) => (node, Some(small_number(numa).ok_or_else(malformed)?)),
            None => (place, None),
        };
        if node.is_empty() {
            return Err(malformed());
        }
        let node =
            node.parse().map_err(|source| TargetError::Node { text: text.to_owned(), source })?;
        let mut gpus = Vec::new();
        if let Some(list) = gpu_text {
            for part in list.split(',') {
                let gpu = small_number(part.trim()).ok_or_else(malformed)?;
                if gpus.contains(&gpu) {
                    return Err(TargetError::GpuTwice { text: text.to_owned(), gpu });
                }
                gpus.push(gpu);
            }
        }
        Ok(Self { node, numa, gpus })
    }
}

/// No computer has more than a few hundred numbered devices.
fn small_number(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 4 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node)?;
        if let Some(numa) = self.numa {
            write!(f, ":{numa}")?;
        }
        for (index, gpu) in self.gpus.iter().enumerate() {
            write!(f, "{}{gpu}", if index == 0 { "::" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn four_target_forms_are_parsed() {
        let parse = |text: &str| {
            let target: Target = text.parse().unwrap();
            (target.node.as_str().to_owned(), target.numa, target.gpus)
        };
        assert_eq!(parse("n1"), ("n1".to_owned(), None, vec![]));
        assert_eq!(parse("n1:0"), ("n1".to_owned(), Some(0), vec![]));
        assert_eq!(parse("n1::0,2"), ("n1".to_owned(), None, vec![0, 2]));
        assert_eq!(parse("n1:1::3"), ("n1".to_owned(), Some(1), vec![3]));
    }

    #[test]
    fn bad_targets_are_refused() {
        for bad in [
            "",
            ":",
            "::",
            "::0",
            "n1:",
            "n1:x",
            "n1::",
            "n1::x",
            "n1::0,0",
            "n1:0:0",
            "n1::0::1",
            "a b",
            "n1:-1",
            "n1::99999",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_without_panic(text in "[a-z0-9:,. -]{0,24}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }
    }
}
