//! The agent of a virtual machine, where no runner can mount anything.
//!
//! ```text
//!  start --settings in place (a restart)-----------------------------+
//!    |                                                               v
//!    +--wait for the seed disk--> settings copied, 0600 ---> port of the guest open
//!                                                              |  proof fails: closed
//!                                                              v
//!                                                            the usual greeting
//! ```
//!
//! It waits for nothing but the seed disk, which is there from the machine's first moment, and
//! listens before the guest has an address.

mod door;
mod seed;
mod settings;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kohakuriver_agent_protocol::GuestSecret;

pub(crate) use door::serve;
pub(crate) use settings::receive;

use crate::config::CONFIG_FILE;
use crate::error::AgentError;

/// The file, inside the configuration directory, that holds the instance's secret as text.
pub const GUEST_SECRET_FILE: &str = "guest_secret";
/// The directory of the seed disk that holds what goes into the configuration directory.
pub const SEED_DIR: &str = "kohakuriver";

/// A driver may be loaded only after we are started; a disk that is not there by now never comes.
const SEED_LIMIT: Duration = Duration::from_secs(120);
const SEED_RETRY: Duration = Duration::from_millis(50);

/// Puts this boot's settings where the agent reads them. What is there stays: it may be newer
/// than the disk.
pub(crate) fn take_settings(config_dir: &Path) -> Result<(), AgentError> {
    if config_dir.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let deadline = Instant::now() + SEED_LIMIT;
    let mut files = loop {
        if let Some(files) = seed::find() {
            break files;
        }
        if Instant::now() > deadline {
            return Err(AgentError::NoSeed { seconds: SEED_LIMIT.as_secs() });
        }
        sleep(SEED_RETRY);
    };
    // Its presence says that all of them are there.
    files.sort_by_key(|file| file.name == CONFIG_FILE);
    private_dir(config_dir)
        .and_then(|()| {
            files.iter().try_for_each(|file| {
                kohakuriver_durable::write(&config_dir.join(&file.name), &file.content, 0o600)
            })
        })
        .map_err(|source| AgentError::CopySettings { path: config_dir.to_owned(), source })
}

/// Only root of the guest may read what is in it.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The secret that the runner has to prove.
pub(crate) fn read_secret(config_dir: &Path) -> Result<GuestSecret, AgentError> {
    let path = config_dir.join(GUEST_SECRET_FILE);
    let text = fs::read_to_string(&path)
        .map_err(|source| AgentError::ReadConfig { path: path.clone(), source })?;
    text.parse().map_err(|source| AgentError::Secret { path, source })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn settings_in_place_are_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG_FILE), "newer").unwrap();
        take_settings(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap(), "newer");
    }
}
