//! `/shared` without set-user-id files and devices.
//!
//! Root in a container is root on shared storage, so a set-user-id file or a device that one
//! leaves there would be such in every other container, and on the node. A bind mount takes on how
//! its source is mounted, so the directory is mounted over itself with `nosuid,nodev`; an engine
//! that lives in another mount namespace sees the directory as it was.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

/// The mount over a directory; dropping it takes away what it made. Containers that run keep
/// theirs.
#[derive(Debug)]
pub struct SharedStorage {
    path: PathBuf,
    made: Mutex<bool>,
}

impl SharedStorage {
    pub fn new(path: PathBuf) -> Self {
        Self { path, made: Mutex::new(false) }
    }

    /// Sees to it that set-user-id files and devices mean nothing there.
    ///
    /// # Errors
    /// They still do.
    pub fn ensure(&self) -> Result<(), Errno> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if is_harmless(&self.path)? {
            return Ok(());
        }
        let none = None::<&str>;
        mount(Some(&self.path), &self.path, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        *made = true;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | kept(&self.path)?;
        mount(none, &self.path, none, flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV, none)
    }
}

impl Drop for SharedStorage {
    fn drop(&mut self) {
        if *self.made.lock().unwrap_or_else(PoisonError::into_inner) {
            // Somebody may have a file open there; it goes with the last of them.
            let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

fn is_harmless(path: &Path) -> Result<bool, Errno> {
    Ok(statvfs(path)?.flags().contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV))
}

/// A remount forgets what it does not name.
fn kept(path: &Path) -> Result<MsFlags, Errno> {
    let has = statvfs(path)?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| *flag).collect())
}
