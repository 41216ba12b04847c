use std::fs::File;
use std::io::Read;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files and connections as its hard limit allows. The soft one is
/// 1024 nearly everywhere, for the sake of programs that use select(2); none of ours does.
///
/// Gives the soft limit that was, for children that should have it again.
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

/// The text of a file of the system's settings, in part where it is far larger than any real one.
pub(crate) fn read_bounded(path: &str) -> Option<String> {
    const MOST: u64 = 4 * 1024 * 1024;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
