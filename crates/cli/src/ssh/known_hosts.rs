//! The host keys of VPSes, in a separate file: the user's `known_hosts` is not changed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use russh::keys::PublicKey;

use crate::error::CommandError;
use crate::files;

/// Records this key as the only one of `alias`. Returns `false` if there is no key.
pub fn pin(path: &Path, alias: &str, key: Option<&str>) -> Result<bool, CommandError> {
    let cannot = |error: std::io::Error| files::unwritable(path, &error);
    let folder = path.parent().unwrap_or(Path::new("."));
    files::private_folder(folder).map_err(cannot)?;
    let Some(key) = key else {
        return Ok(false);
    };
    // Parsed and formatted again, so that a host cannot inject a second line.
    let key = PublicKey::from_openssh(key).and_then(|key| {
        let line = key.to_openssh()?;
        Ok(line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    });
    let Ok(key) = key else {
        return Err(CommandError::request("the host sent an invalid SSH host key")
            .hint("see `kohakuriver version`: the two sides may be of different versions"));
    };
    // Two logins at once must not lose each other's line.
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(cannot)?;
    lock.lock().map_err(cannot)?;
    let old = fs::read_to_string(path).unwrap_or_default();
    if let Some(new) = rewritten(&old, alias, &key) {
        files::replace(path, 0o600, new.as_bytes()).map_err(cannot)?;
    }
    Ok(true)
}

/// The file with one line for `alias`, or None where it says so already.
fn rewritten(old: &str, alias: &str, key: &str) -> Option<String> {
    let wanted = format!("{alias} {key}");
    let is_ours = |line: &&str| line.split_whitespace().next() == Some(alias);
    let mut ours = old.lines().filter(is_ours);
    if ours.next() == Some(wanted.as_str()) && ours.next().is_none() {
        return None;
    }
    let mut new: String =
        old.lines().filter(|line| !is_ours(line)).flat_map(|line| [line, "\n"]).collect();
    new.push_str(&wanted);
    new.push('\n');
    Some(new)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn a_new_key_replaces_the_old_line_and_no_other() {
        let old = "kohakuriver-vps-7 ssh-ed25519 OLD\nkohakuriver-vps-77 ssh-ed25519 X\n";
        let new = rewritten(old, "kohakuriver-vps-7", KEY).unwrap();
        assert_eq!(new, format!("kohakuriver-vps-77 ssh-ed25519 X\nkohakuriver-vps-7 {KEY}\n"));
        assert_eq!(rewritten(&new, "kohakuriver-vps-7", KEY), None);
    }

    #[test]
    fn the_file_is_private_and_holds_one_clean_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/known_hosts");
        assert!(!pin(&path, "a", None).unwrap());
        assert!(pin(&path, "a", Some(&format!("{KEY} a comment"))).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("a {KEY}\n"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(pin(&path, "a", Some("nonsense")).is_err());
        assert!(
            pin(&path, "a", Some(&format!("{KEY}\n* {KEY}"))).is_err()
                || !fs::read_to_string(&path).unwrap().contains('*')
        );
    }
}
