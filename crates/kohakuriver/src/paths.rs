//! Where state lives unless somebody says otherwise.

use std::path::PathBuf;

pub use kohakuriver_cli::data_dir;

/// Docker's bind mounts need absolute paths.
pub fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
