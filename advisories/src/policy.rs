//! What `deny.toml` says on advisories, in the words of cargo-deny, which reads it too.

use std::collections::BTreeSet;

use anyhow::Context;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Policy {
    /// Ids of advisories that do not concern us.
    #[serde(default)]
    pub ignore: BTreeSet<String>,
    #[serde(default)]
    pub unmaintained: Scope,
}

/// Whose lack of a maintainer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    #[default]
    All,
    None,
    /// What others ask for.
    Transitive,
    /// What we ask for ourselves.
    Workspace,
}

impl Policy {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct File {
            advisories: Policy,
        }
        let file: File =
            toml::from_str(text).context("its [advisories] are not understood here")?;
        Ok(file.advisories)
    }
}

impl Scope {
    pub(crate) fn has(self, direct: bool) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Transitive => !direct,
            Self::Workspace => direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::is_id;

    #[test]
    fn deny_toml_is_understood() {
        let policy = Policy::parse(include_str!("../../deny.toml")).unwrap();
        assert!(policy.ignore.iter().all(|id| is_id(id)), "{:?}", policy.ignore);
        assert_eq!(policy.unmaintained, Scope::Workspace);
    }

    #[test]
    fn who_ignores_nothing_need_not_say_so() {
        assert!(Policy::parse("[advisories]").unwrap().ignore.is_empty());
        Policy::parse("[advisories]\nunmaintained = 'some'").unwrap_err();
    }
}
