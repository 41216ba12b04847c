//! Environment tarballs in shared storage: `<name>-<unix seconds>.tar`, the newest counts.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Docker wants lower case and single separators; other names get a name of their own.
pub fn repository(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let parts = name.split(['-', '.', '_']).all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    });
    if plain || parts {
        return format!("kohakuriver/{name}");
    }
    let digest = Sha256::digest(name.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("kohakuriver/environment-{short}")
}

/// The newest tarball of `name`, and every name there is.
pub fn find_environment(dir: &Path, name: &str) -> (Option<PathBuf>, Vec<String>) {
    let mut newest: Option<(u64, PathBuf)> = None;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let Some(stem) = file.to_str().and_then(|file| file.strip_suffix(".tar")) else {
            continue;
        };
        let Some((found, time)) = stem.rsplit_once('-') else {
            continue;
        };
        let Ok(time) = time.parse::<u64>() else {
            continue;
        };
        if found == name && newest.as_ref().is_none_or(|(known, _)| time > *known) {
            newest = Some((time, entry.path()));
        }
        names.push(found.to_owned());
    }
    names.sort();
    names.dedup();
    names.truncate(50);
    (newest.map(|(_, path)| path), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_tarball_wins_and_others_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["a-b-9.tar", "a-b-10.tar", "a-b-x.tar", "z-1.tar", "readme.md", "a-b-11.tar.part"]
        {
            fs::write(dir.path().join(file), b"").unwrap();
        }
        let (found, names) = find_environment(dir.path(), "a-b");
        assert_eq!(found, Some(dir.path().join("a-b-10.tar")));
        assert_eq!(names, ["a-b", "z"]);
        assert_eq!(find_environment(&dir.path().join("none"), "a"), (None, vec![]));
    }

    #[test]
    fn every_environment_has_a_repository_docker_accepts() {
        assert_eq!(repository("my-env.2"), "kohakuriver/my-env.2");
        for odd in ["My", "a--b", "a-", "A"] {
            assert!(repository(odd).starts_with("kohakuriver/environment-"), "{odd}");
        }
        assert_ne!(repository("My"), repository("MY"));
    }
}
