//! The few files the client keeps: keys, known hosts, the ssh configuration.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The home folder.
pub fn home() -> Result<PathBuf, Failure> {
    match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home)),
        None => Err(Failure::usage("HOME is not set").hint("set HOME to your home folder")),
    }
}

/// The folder for what can be made again.
pub fn cache() -> Result<PathBuf, Failure> {
    let root = match std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => home()?.join(".cache"),
    };
    Ok(root.join("kohakuriver"))
}

/// Makes a folder only its owner can enter, unless it exists.
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

/// Replaces a file in one step: readers see the old or the new content, never half.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()));
    let result = write_new(&temporary, mode, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
