//! The default data directory.

use std::path::PathBuf;

pub use kohakuriver_cli::data_dir;

/// Makes a path absolute, as Docker's bind mounts require.
pub fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
