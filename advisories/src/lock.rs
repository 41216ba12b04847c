//! The packages of others in a `Cargo.lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context;
use semver::Version;
use serde::Deserialize;

/// A package of somebody else, at a version that is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    pub name: String,
    pub version: Version,
}

/// Packages of others, and whether one of ours asks for them itself.
pub type Packages = BTreeMap<Package, bool>;

impl fmt::Display for Package {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.name, self.version)
    }
}

#[derive(Deserialize)]
struct File {
    package: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    version: String,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Adds what a lock file has. A patched package of others, which lies in `vendor` and so has no
/// source, is as good as the version it was made from.
pub fn read(text: &str, into: &mut Packages) -> anyhow::Result<()> {
    let file: File = toml::from_str(text).context("it is no lock file")?;
    let (ours, others): (Vec<_>, Vec<_>) =
        file.package.into_iter().partition(|entry| is_ours(&entry.name));
    let asked: BTreeSet<_> = ours.iter().flat_map(|entry| &entry.dependencies).collect();
    for Entry { name, version, .. } in others {
        // `name`, `name version` where there are several, `name version (source)`.
        let direct = asked.iter().any(|asked| {
            let mut words = asked.split(' ');
            words.next() == Some(&name) && words.next().is_none_or(|word| word == version)
        });
        let version = version.parse().with_context(|| format!("{name} {version}"))?;
        *into.entry(Package { name, version }).or_default() |= direct;
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    name == "kohakuriver" || name.starts_with("kohakuriver-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_ours_are_there_and_what_ours_ask_for_is_direct() {
        let mut packages = Packages::new();
        read(LOCK, &mut packages).unwrap();
        let packages: Vec<_> =
            packages.iter().map(|(package, direct)| (package.to_string(), *direct)).collect();
        let expected = [
            ("rand 0.8.6", false),
            ("rand 0.10.4", true),
            ("rsa 0.10.0-rc.18", false),
            ("russh 0.65.1", true),
        ];
        assert_eq!(packages, expected.map(|(name, direct)| (name.to_owned(), direct)));
    }

    #[test]
    fn a_second_lock_file_adds_what_it_has() {
        let mut packages = Packages::new();
        read(LOCK, &mut packages).unwrap();
        read(&LOCK.replace("0.65.1", "0.60.2").replace("rand 0.10.4", "rand 0.8.6"), &mut packages)
            .unwrap();
        assert_eq!(packages.len(), 5);
        let direct: Vec<_> = packages.iter().filter(|(_, direct)| **direct).collect();
        assert_eq!(direct.len(), 4, "{direct:?}");
    }

    #[test]
    fn what_is_no_lock_file_is_said_to_be_none() {
        read("version = 4", &mut Packages::new()).unwrap_err();
        read("[[package]]\nname = \"a\"\nversion = \"new\"", &mut Packages::new()).unwrap_err();
    }

    /// `russh` is a patched one: it has no source.
    const LOCK: &str = r#"
        version = 4
        [[package]]
        name = "kohakuriver"
        version = "0.1.0"
        dependencies = ["kohakuriver-host"]
        [[package]]
        name = "kohakuriver-host"
        version = "0.1.0"
        dependencies = ["rand 0.10.4", "russh"]
        [[package]]
        name = "rand"
        version = "0.8.6"
        source = "registry"
        [[package]]
        name = "rand"
        version = "0.10.4"
        source = "registry"
        [[package]]
        name = "rsa"
        version = "0.10.0-rc.18"
        source = "registry"
        dependencies = ["rand 0.8.6"]
        [[package]]
        name = "russh"
        version = "0.65.1"
        dependencies = ["rsa"]
    "#;
}
