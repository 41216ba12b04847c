//! Removes leftovers of steps that were abandoned, interrupted by a crash, or failed.
//!
//! ```text
//!  driver at rest --tidy--> of one machine: promise, half-made disk, snapshot that was begun, old
//!                           disks, and what a QEMU that is gone had around it
//!  every minute, and when there is something --sweep--> of the node: layers that nothing is built
//!                           on, half-made and half-removed disks, devices of no machine
//! ```
//!
//! The driver is the only writer of its machine, so while it rests, files that no record names are
//! garbage. What belongs to the node is looked through under the lock that is held while disks
//! and layers are made.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kohakuriver_model::InstanceId;
use kohakuriver_vm::command::{RUN_DIR, SEED};

use super::record::MachineDir;
use super::{QemuBackend, files};
use crate::backend::BackendError;

/// Images come and go without an event; the layer of one that is gone is found by then.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// The pause before leftovers that could not be removed are retried.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);

impl QemuBackend {
    /// Clears away what nothing of this machine's records names.
    ///
    /// # Errors
    /// Something of it is still there; may be repeated.
    pub(super) async fn tidy_machine(&self, id: InstanceId) -> Result<(), BackendError> {
        // No create is under way, so nothing will be built on the layer that one was promised.
        let was_promised = self.promised().remove(&id).is_some();
        let dir = self.dir(id);
        match dir.machine().map_err(files)? {
            None if dir.path().try_exists().map_err(files)? => return self.unmake(id).await,
            None if self.owes(id) => self.release(id).await?,
            None => {}
            Some(mut machine) => {
                self.settle(&dir, &mut machine)?;
                if self.live(id).is_none() && self.unmanaged(id).is_none() {
                    // A QEMU that runs may open its old disk again by its name.
                    let disks = &self.shared.disks;
                    disks.drop_old_disks(dir.path(), &machine.disk).map_err(files)?;
                    if self.owes(id) || has_traces(&dir).map_err(files)? {
                        self.release(id).await?;
                    }
                }
            }
        }
        if was_promised {
            let _making = self.shared.making.lock().await;
            self.collect().await;
        }
        Ok(())
    }

    /// A network device or a GPU of this machine could not be given back.
    fn owes(&self, id: InstanceId) -> bool {
        self.owing().contains(&id)
    }

    pub(super) fn owing(&self) -> std::sync::MutexGuard<'_, BTreeSet<InstanceId>> {
        self.shared.owing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks through the node's files now and then, and soon after something could not be removed.
    pub(super) fn keep_tidy(&self) {
        let (this, left) = (self.clone(), self.shared.left.clone());
        tokio::spawn(left.run_until_cancelled_owned(async move {
            loop {
                let pause = if this.is_untidy() { SWEEP_AGAIN } else { SWEEP_EVERY };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = this.shared.untidied.notified() => tokio::time::sleep(SWEEP_AGAIN).await,
                }
                this.sweep().await;
            }
        }));
    }

    fn is_untidy(&self) -> bool {
        self.shared.untidy.load(Ordering::Relaxed)
    }

    /// Something is left that could not be removed: [`Self::sweep`] tries again soon.
    pub(super) fn leave_untidy(&self) {
        self.shared.untidy.store(true, Ordering::Relaxed);
        self.shared.untidied.notify_one();
    }

    /// Removes what belongs to no machine of this node.
    pub(super) async fn sweep(&self) {
        self.shared.untidy.store(false, Ordering::Relaxed);
        if !self.shared.disks.disks_dir().exists() {
            return;
        }
        let _making = self.shared.making.lock().await;
        if let Err(error) = self.sweep_disks() {
            tracing::warn!(%error, "cannot remove leftovers of removed VMs; retried later");
            self.leave_untidy();
        }
        self.collect().await;
        if self.shared.devices_left.load(Ordering::Relaxed)
            && let Ok(ids) = self.ids()
        {
            // Each of these is its driver's to clear away.
            let whole = self.shared.host.sweep(&ids).await;
            self.shared.devices_left.store(!whole, Ordering::Relaxed);
            if !whole {
                self.leave_untidy();
            }
        }
    }
}

/// A QEMU that was killed while no runner was there leaves its seed and its sockets.
fn has_traces(dir: &MachineDir) -> io::Result<bool> {
    Ok(dir.path().join(SEED).try_exists()? || !sockets(dir)?.is_empty())
}

/// Removes the files that only a running QEMU has. The console's log stays.
pub(super) fn remove_traces(dir: &MachineDir) -> io::Result<()> {
    let mut traces = sockets(dir)?;
    traces.push(dir.path().join(SEED));
    for path in traces {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn sockets(dir: &MachineDir) -> io::Result<Vec<std::path::PathBuf>> {
    let entries = match fs::read_dir(dir.path().join(RUN_DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            sockets.push(entry.path());
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests;
