//! Files of the client: keys, known hosts, the ssh configuration.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::error::CommandError;
use crate::identity;
use crate::ssh::shell_word;

/// Returns the home directory.
pub fn home() -> Result<PathBuf, CommandError> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home)),
        None => Err(CommandError::usage("HOME is not set").hint("set HOME to your home folder")),
    }
}

/// Returns the cache directory, whose content can be created again.
pub fn cache() -> Result<PathBuf, CommandError> {
    let root = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => home()?.join(".cache"),
    };
    Ok(root.join("kohakuriver"))
}

/// Creates a directory that only its owner can enter, unless it exists.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that must not exist yet.
pub fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mask must not take away what ssh wants.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)
}

/// Replaces a file atomically: readers see the old or the new content.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()));
    let result = write_new(&temporary, mode, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Returns the error of a file that was not written, with a remedy.
pub fn unwritable(path: &Path, error: &io::Error) -> CommandError {
    refused(path, "written", error)
}

/// Returns the error of a file that was not read.
pub fn unreadable(path: &Path, error: &io::Error) -> CommandError {
    refused(path, "read", error)
}

fn refused(path: &Path, done: &str, error: &io::Error) -> CommandError {
    let failure = CommandError::usage(format!("{} cannot be {done}: {error}", path.display()));
    if error.kind() != io::ErrorKind::PermissionDenied {
        return failure;
    }
    let owner = |path: &Path| path.metadata().ok().map(|meta| meta.uid());
    match (home().ok(), std::path::absolute(path)) {
        (Some(home), Ok(path)) => match roots(&path, &home, Uid::effective().as_raw(), owner) {
            Some(hint) => failure.hint(hint),
            None => failure,
        },
        (None, _) | (_, Err(_)) => failure,
    }
}

/// Returns the remedy where something below the home directory belongs to root, as files that a
/// command with sudo has created. Above the home directory that is normal.
fn roots(
    path: &Path,
    home: &Path,
    user: u32,
    owner: impl Fn(&Path) -> Option<u32>,
) -> Option<String> {
    let mine = path.ancestors().take_while(|part| part.starts_with(home) && *part != home);
    // The outermost: what is in it belongs to root too.
    let of_root = mine.filter(|part| owner(part) == Some(0)).last()?;
    let (shown, user) = (
        shell_word(&of_root.to_string_lossy()),
        match user {
            0 => return None,
            user => identity::name_of(user),
        },
    );
    Some(format!(
        "{} belongs to root, perhaps since a command with sudo: sudo chown -R {user} {shown}",
        of_root.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_root_below_home_is_named_with_remedy() {
        let home = Path::new("/home/ann");
        let owner = |path: &Path| match path.to_str()? {
            "/home/ann" | "/home/ann/.cache" | "/srv/x" => Some(4242),
            "/" | "/home" | "/home/ann/.cache/kohakuriver" => Some(0),
            // Not even that can be asked in a folder of root's.
            _ => None,
        };
        let hint = |path: &str, user| roots(Path::new(path), home, user, owner);
        let said = hint("/home/ann/.cache/kohakuriver/ssh/vps-7", 4242).unwrap();
        assert!(said.ends_with("sudo chown -R 4242 /home/ann/.cache/kohakuriver"), "{said}");
        assert_eq!(hint("/home/ann/.cache/other", 4242), None);
        assert_eq!(hint("/home/ann/.cache/kohakuriver/x", 0), None, "root may");
        for outside in ["/home/bob/x", "/srv/x/y", "/x"] {
            assert_eq!(hint(outside, 4242), None, "{outside}: never a chown there");
        }
    }
}
