//! Locks the data directory for one runner.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use kohakuriver_durable as durable;

/// Held for the runner's life; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: Flock<File>,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "another runner is using {dir}: stop it first, or give this one another data directory"
    )]
    Taken { dir: PathBuf },
    #[error("cannot use the data directory {dir}")]
    Unusable { dir: PathBuf, source: io::Error },
}

/// Takes the data directory, creating it where it is missing.
pub fn lock_data_dir(dir: &Path) -> Result<DataDirLock, LockError> {
    let unusable = |source| LockError::Unusable { dir: dir.to_owned(), source };
    durable::private_dir(dir).map_err(unusable)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(unusable)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(DataDirLock { _file: file }),
        Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Taken { dir: dir.to_owned() }),
        Err((_, errno)) => Err(unusable(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_runner_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_data_dir(dir.path()).unwrap();
        assert!(matches!(lock_data_dir(dir.path()), Err(LockError::Taken { .. })));
        drop(first);
        assert!(lock_data_dir(dir.path()).is_ok());
    }
}
