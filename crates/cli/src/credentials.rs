//! Stored credentials: one token for each host, in a file that only its owner can read.
//!
//! ```toml
//! ["gpu1:8000"]
//! token = "..."
//! user = "ann"
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::CommandError;
use crate::files;
use crate::settings::Token;

const FILE: &str = "credentials.toml";

/// The credential for one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    pub token: Token,
    /// The user name, for messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The host's id of the token that this machine got at its login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
}

type All = BTreeMap<String, Credential>;

/// Returns the path of the file.
pub fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Returns the credential for the host at `place`, a `host:port`.
pub fn load(folder: &Path, place: &str) -> Result<Option<Credential>, CommandError> {
    Ok(read(&path(folder))?.remove(&place.to_ascii_lowercase()))
}

/// Stores the credential in place of the previous one for that host.
pub fn store(folder: &Path, place: &str, credential: Credential) -> Result<(), CommandError> {
    let path = path(folder);
    let mut all = read(&path)?;
    all.insert(place.to_ascii_lowercase(), credential);
    write(folder, &path, &all)
}

/// Removes the credential. Returns whether it existed.
pub fn remove(folder: &Path, place: &str) -> Result<bool, CommandError> {
    let path = path(folder);
    let mut all = read(&path)?;
    let known = all.remove(&place.to_ascii_lowercase()).is_some();
    if known {
        write(folder, &path, &all)?;
    }
    Ok(known)
}

fn read(path: &Path) -> Result<All, CommandError> {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(All::new()),
        Err(error) => return Err(files::unreadable(path, &error)),
    };
    // As ssh does with keys: whoever else could read it has the person's rights.
    let mode = fs::metadata(path).map(|file| file.permissions().mode()).unwrap_or_default();
    if mode & 0o077 != 0 {
        return Err(CommandError::usage(format!("others can read {shown}"))
            .hint(format!("chmod 600 {shown}; if they did, log out and in again")));
    }
    // The parser's own words would quote the line, and with it the token.
    toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
        CommandError::usage(format!("{shown}:{line} is invalid"))
            .hint(format!("correct it, or remove it and log in again: rm {shown}"))
    })
}

fn write(folder: &Path, path: &Path, all: &All) -> Result<(), CommandError> {
    let text = toml::to_string(all).map_err(|error| {
        CommandError::usage(format!("{} cannot be written: {error}", path.display()))
    })?;
    files::private_folder(folder)
        .and_then(|()| files::replace(path, 0o600, text.as_bytes()))
        .map_err(|error| files::unwritable(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(token: &str, user: Option<&str>) -> Credential {
        Credential { token: token.parse().unwrap(), user: user.map(ToOwned::to_owned), id: Some(7) }
    }

    #[test]
    fn credential_is_stored_per_host_until_removed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("fresh");
        assert_eq!(load(&folder, "gpu1:8000").unwrap(), None);
        assert!(!remove(&folder, "gpu1:8000").unwrap());
        store(&folder, "GPU1:8000", credential("one", Some("ann"))).unwrap();
        store(&folder, "[::1]:8000", credential("two", None)).unwrap();
        store(&folder, "gpu1:8000", credential("three", Some("ann"))).unwrap();
        let mode = fs::metadata(path(&folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(load(&folder, "gpu1:8000").unwrap(), Some(credential("three", Some("ann"))));
        assert_eq!(load(&folder, "gpu1:8001").unwrap(), None);
        assert!(remove(&folder, "gpu1:8000").unwrap());
        assert_eq!(load(&folder, "gpu1:8000").unwrap(), None);
        assert_eq!(load(&folder, "[::1]:8000").unwrap(), Some(credential("two", None)));
    }

    #[test]
    fn readable_or_invalid_file_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        store(folder.path(), "gpu1:8000", credential("hunter2", None)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let failure = load(folder.path(), "gpu1:8000").unwrap_err();
        assert!(failure.hint.unwrap().starts_with("chmod 600 "));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "[\"gpu1:8000\"]\ntoken = \"hunter2 hunter2\"\n").unwrap();
        let failure = load(folder.path(), "gpu1:8000").unwrap_err();
        assert!(failure.message.contains("credentials.toml:"), "{}", failure.message);
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
}
