use std::fs::File;
use std::io::Read;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit of open files to its hard limit. The soft one is 1024 nearly
/// everywhere, for the sake of programs that use select(2); none of ours does.
///
/// Returns the previous soft limit, to restore in children.
///
/// # Errors
/// The kernel's; the limit is then as it was.
pub fn raise_file_limit() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(soft)
}

/// Reads a file of the system's settings, truncated where it is far larger than any real one.
pub(crate) fn read_bounded(path: &str) -> Option<String> {
    const MOST: u64 = 4 * 1024 * 1024;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
