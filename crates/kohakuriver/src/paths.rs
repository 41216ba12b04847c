//! Where state lives unless somebody says otherwise.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// One directory for everything: `host/`, `runner/` and `shared/` inside.
pub fn data_dir(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| {
        if Uid::effective().is_root() {
            return PathBuf::from("/var/lib/kohakuriver");
        }
        let home = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
        home.unwrap_or_else(|| PathBuf::from(".")).join("kohakuriver")
    })
}

/// Docker's bind mounts need absolute paths.
pub fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
