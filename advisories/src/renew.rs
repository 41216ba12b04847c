//! A new snapshot, from a clone of the RustSec database.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use toml::value::Datetime;

use crate::range::Range;
use crate::snapshot::{Advisory, Informational, Snapshot, is_id};

const HEAD: &str = "\
# What the RustSec database (https://rustsec.org) says of every package in our lock files, so that they
# are held against it without a network: advisories/src/lib.rs says how, CONTRIBUTING.md how this is
# renewed. `asked` is the day it was asked; what was published after `newest`, the date of the newest
# advisory that it had of any package, is not in here. Most packages have no advisory.

";

/// An advisory as the database has it, in front of its text.
#[derive(Deserialize)]
struct Front {
    advisory: Head,
    versions: Versions,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    package: String,
    informational: Option<Informational>,
    withdrawn: Option<String>,
}

#[derive(Deserialize)]
struct Versions {
    patched: Vec<Range>,
    #[serde(default)]
    unaffected: Vec<Range>,
}

/// What a clone of the database says of these packages.
pub fn take(
    database: &Path,
    packages: BTreeSet<String>,
    asked: Datetime,
) -> anyhow::Result<Snapshot> {
    let mut advisories = Vec::new();
    let mut newest = None;
    let crates = database.join("crates");
    for folder in fs::read_dir(&crates)
        .with_context(|| format!("{} is no clone of the database", database.display()))?
    {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let file = file?.path();
            let stem = file.file_stem().and_then(|stem| stem.to_str());
            if !stem.is_some_and(is_id)
                || file.extension().is_none_or(|extension| extension != "md")
            {
                continue;
            }
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let (advisory, date) =
                read(&text, &packages).with_context(|| file.display().to_string())?;
            newest = newest.max(Some(date));
            advisories.extend(advisory);
        }
    }
    advisories.sort_by(|one, other| (&one.package, &one.id).cmp(&(&other.package, &other.id)));
    let newest = newest.context("the database has no advisory")?;
    Ok(Snapshot { asked, newest, packages, advisories })
}

/// The date of an advisory, and all of it if it is about one of the packages.
fn read(text: &str, packages: &BTreeSet<String>) -> anyhow::Result<(Option<Advisory>, Datetime)> {
    let (front, body) = text
        .strip_prefix("```toml\n")
        .and_then(|rest| rest.split_once("\n```"))
        .context("it does not begin with TOML")?;
    let table: toml::Table = toml::from_str(front)?;
    let word = |key: &str| {
        table.get("advisory").and_then(|head| head.get(key)).and_then(|word| word.as_str())
    };
    let date = word("date").context("it has no date")?.parse()?;
    if !word("package").is_some_and(|package| packages.contains(package)) {
        return Ok((None, date));
    }
    let Front { advisory, versions } = table.try_into()?;
    let title = body.lines().find_map(|line| line.strip_prefix('#')).context("it has no title")?;
    ensure!(is_id(&advisory.id), "it has no id");
    let advisory = Advisory {
        id: advisory.id,
        package: advisory.package,
        title: title.trim().to_owned(),
        date,
        patched: versions.patched,
        unaffected: versions.unaffected,
        informational: advisory.informational,
        withdrawn: advisory.withdrawn.map(|date| date.parse()).transpose()?,
    };
    Ok((Some(advisory), date))
}

/// The file that a snapshot becomes.
pub fn write(snapshot: &Snapshot) -> anyhow::Result<String> {
    Ok(format!("{HEAD}{}", toml::to_string_pretty(snapshot)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_written_as_it_would_be_written() {
        let text = include_str!("../snapshot.toml");
        let written = write(&Snapshot::parse(text).unwrap()).unwrap();
        assert!(written == text, "advisories/snapshot.toml has a form of its own");
    }

    #[test]
    fn a_clone_of_the_database_becomes_a_snapshot() {
        let database = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = database.path().join("crates").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("rand/RUSTSEC-2026-0097.md", RAND);
        put("rand/RUSTSEC-0000-0000.md", "a draft");
        put("RUSTSEC-0000-0000.md", "a draft in a wrong place");
        put("spin/RUSTSEC-2019-0031.md", SPIN);
        put(
            "stranger/RUSTSEC-2026-0333.md",
            "```toml\n[advisory]\npackage = \"stranger\"\ndate = \"2026-10-06\"\n```\n",
        );
        let packages = ["rand", "spin", "url"].map(str::to_owned).into();
        let snapshot = take(database.path(), packages, "2026-11-26".parse().unwrap()).unwrap();
        let text = write(&snapshot).unwrap();
        let expected = r#"asked = 2026-11-26
newest = 2026-10-06
packages = [
    "rand",
    "spin",
    "url",
]

[[advisory]]
id = "RUSTSEC-2026-0097"
package = "rand"
title = "Rand is unsound"
date = 2026-04-09
patched = [
    ">= 0.10.1",
    "< 0.10.0, >= 0.9.3",
]
unaffected = ["< 0.7.0"]
informational = "unsound"

[[advisory]]
id = "RUSTSEC-2019-0031"
package = "spin"
title = "spin is no longer actively maintained"
date = 2019-11-21
patched = []
unaffected = [">= 0"]
informational = "unmaintained"
withdrawn = 2020-10-08
"#;
        assert_eq!(text.strip_prefix(HEAD).unwrap(), expected);
    }

    #[test]
    fn what_is_no_advisory_is_named() {
        let packages = ["rand".to_owned()].into();
        read("# An advisory", &packages).unwrap_err();
        read(&RAND.replace(">= 0.10.1", "soon"), &packages).unwrap_err();
        read(&RAND.replace("unsound\"", "odd\""), &packages).unwrap_err();
        read(&RAND.replace("2026-04-09", "April"), &packages).unwrap_err();
        let empty = tempfile::tempdir().unwrap();
        let error = take(empty.path(), packages, "2026-11-26".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no clone of the database"), "{error}");
    }

    const RAND: &str = r#"```toml
[advisory]
id = "RUSTSEC-2026-0097"
package = "rand"
date = "2026-04-09"
informational = "unsound"
categories = []

[affected.functions]
"rand::rng" = [">= 0.9.0"]

[versions]
patched = [">= 0.10.1", "< 0.10.0, >= 0.9.3"]
unaffected = ["< 0.7.0"]
```

# Rand is unsound

It has been reported.
"#;

    const SPIN: &str = r#"```toml
[advisory]
id = "RUSTSEC-2019-0031"
package = "spin"
date = "2019-11-21"
informational = "unmaintained"
withdrawn = "2020-10-08"

[versions]
patched = []
unaffected = [">= 0"] # withdrawn
```

# spin is no longer actively maintained
"#;
}
