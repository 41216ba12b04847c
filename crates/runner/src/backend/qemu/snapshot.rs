//! Snapshots of VMs: the current disk becomes a layer, and the VM continues on top of it.
//!
//! ```text
//!  stopped:  link -> next disk -> record                      (kohakuriver_vm::disk)
//!  running:  link -> next disk -> guest's filesystems frozen, QEMU goes over -> thawed -> record
//! ```
//!
//! The layer stays for as long as a disk or a snapshot is built on it; a snapshot that is deleted
//! takes its space along when the disks above it are gone or flattened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use kohakuriver_model::{InstanceId, SnapshotRef};
use kohakuriver_runner_link::protocol::Snapshot;
use kohakuriver_vm::command::{ROOT_DEVICE, ROOT_NODE, RUN_DIR};
use kohakuriver_vm::guest_agent::GuestAgent;
use kohakuriver_vm::qmp::QmpError;
use serde_json::json;

use super::live::{self, Live};
use super::record::{Machine, MachineDir, SnapshotFile, read};
use super::{QemuBackend, disk, files};
use crate::backend::{BackendError, SnapshotSpec};
use crate::clock;
use kohakuriver_durable as durable;

impl QemuBackend {
    fn snapshots_root(&self) -> PathBuf {
        self.shared.disks.root().join("snapshots")
    }

    fn snapshots_dir(&self, id: InstanceId) -> PathBuf {
        self.snapshots_root().join(id.to_string())
    }

    fn snapshot_file(&self, id: InstanceId, tag: u64) -> PathBuf {
        self.snapshots_dir(id).join(format!("{tag}.json"))
    }

    pub(super) fn snapshot_layer(&self, which: SnapshotRef) -> Result<String, BackendError> {
        let path = self.snapshot_file(which.task_id, which.tag);
        let known: Option<SnapshotFile> = read(&path).map_err(files)?;
        let missing = BackendError::SnapshotNotFound { which: which.tag.to_string() };
        known.map(|snapshot| snapshot.layer).ok_or(missing)
    }

    /// Newest first.
    fn tags(&self, id: InstanceId) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(self.snapshots_dir(id)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut tags: Vec<u64> = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let tag =
                name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
            tags.extend(tag);
        }
        tags.sort_unstable_by(|a, b| b.cmp(a));
        Ok(tags)
    }

    pub(super) async fn freeze(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError> {
        let dir = self.dir(id);
        let refused = |reason: String| BackendError::Refused { by: "QEMU", act: "save", reason };
        let Some(mut machine) = dir.machine().map_err(files)? else {
            return Err(refused("it has no disk".to_owned()));
        };
        if self.unmanaged(id).is_some() {
            return Err(refused("its QEMU does not answer".to_owned()));
        }
        let disks = &self.shared.disks;
        self.settle(&dir, &mut machine)?;
        disks.check_space(0).map_err(disk)?;
        let newest = self.tags(id).map_err(files)?.first().copied().unwrap_or(0);
        let now = u64::try_from(clock::now_ms() / 1000).unwrap_or(0);
        let tag = now.max(newest + 1);
        // Not to be guessed by another machine's QEMU, which may pass through the layers' directory.
        let (layer, next) =
            (format!("{id}-{tag}-{:032x}", rand::random::<u128>()), format!("disk-{tag}.qcow2"));
        // Whoever collects at this moment must know of the layer before it is there.
        let making = self.shared.making.lock().await;
        machine.freezing = Some((layer.clone(), next.clone()));
        self.write_machine(&dir, &machine)?;
        disks.begin_freeze(dir.path(), &machine.disk, &layer, &next).await.map_err(disk)?;
        drop(making);
        if let Some(live) = self.live(id)
            && let Err(error) = go_over(&live, &dir, &next, tag).await
        {
            match &error {
                QmpError::Refused { .. } => {
                    disks.undo_freeze(dir.path(), &layer, &next).map_err(files)?;
                    machine.freezing = None;
                    self.write_machine(&dir, &machine)?;
                }
                // It may have gone over, or be about to: the next disk is right either way.
                QmpError::Socket(_) | QmpError::Nonsense(_) | QmpError::Silent | QmpError::Gone => {
                    self.settle(&dir, &mut machine)?;
                }
            }
            return Err(refused(live::reason(&error)));
        }
        self.settle(&dir, &mut machine)?;
        let file = SnapshotFile { name: wish.name.clone(), message: wish.message.clone(), layer };
        self.change()?;
        durable::private_dir(&self.snapshots_dir(id)).map_err(files)?;
        let text = serde_json::to_vec(&file).map_err(|error| files(error.into()))?;
        self.change()?;
        durable::write(&self.snapshot_file(id, tag), &text, 0o600).map_err(files)?;
        self.keep_newest(id, keep).await?;
        let made = self.snapshots(id)?.into_iter().find(|snapshot| snapshot.tag == tag);
        made.ok_or_else(|| BackendError::SnapshotNotFound { which: tag.to_string() })
    }

    /// Finishes a freeze that was begun, also by a runner that crashed in the middle of it.
    pub(super) fn settle(
        &self,
        dir: &MachineDir,
        machine: &mut Machine,
    ) -> Result<(), BackendError> {
        let Some((layer, next)) = machine.freezing.clone() else { return Ok(()) };
        let disks = &self.shared.disks;
        if disks.settle(dir.path(), &layer, &next, &machine.layer).map_err(disk)? {
            (machine.layer, machine.disk) = (layer, next);
        }
        machine.freezing = None;
        self.write_machine(dir, machine)
    }

    pub(super) fn write_machine(
        &self,
        dir: &MachineDir,
        machine: &Machine,
    ) -> Result<(), BackendError> {
        self.change()?;
        dir.write_machine(machine).map_err(files)
    }

    /// Before a change of files that a crash may come between.
    pub(super) fn change(&self) -> Result<(), BackendError> {
        self.shared.disks.cut().point().map_err(files)
    }

    /// Snapshots that disks were made from.
    fn origins(&self) -> io::Result<BTreeSet<(InstanceId, u64)>> {
        let mut origins = BTreeSet::new();
        for id in self.ids()? {
            let machine = self.dir(id).readable_machine()?;
            let origin = machine.and_then(|machine| machine.origin);
            origins.extend(origin.map(|origin| (origin.task_id, origin.tag)));
        }
        Ok(origins)
    }

    pub(super) fn snapshots(&self, id: InstanceId) -> Result<Vec<Snapshot>, BackendError> {
        let origins = self.origins().map_err(files)?;
        let disks = &self.shared.disks;
        let mut snapshots = Vec::new();
        for tag in self.tags(id).map_err(files)? {
            let Some(file) = read::<SnapshotFile>(&self.snapshot_file(id, tag)).map_err(files)?
            else {
                continue;
            };
            let chain = disks.chain(&file.layer).map_err(disk)?;
            snapshots.push(Snapshot {
                tag,
                name: file.name,
                message: file.message,
                size_bytes: chain.iter().map(|layer| disks.own_bytes(layer)).sum(),
                own_bytes: disks.own_bytes(&file.layer),
                in_use: origins.contains(&(id, tag)),
            });
        }
        Ok(snapshots)
    }

    /// Removes the oldest beyond `keep`, but none that a disk was made from.
    async fn keep_newest(&self, id: InstanceId, keep: u32) -> Result<(), BackendError> {
        if keep == 0 {
            return Ok(());
        }
        for old in self.snapshots(id)?.into_iter().skip(keep as usize) {
            if !old.in_use {
                self.forget_snapshot(id, old.tag).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn forget_snapshot(
        &self,
        id: InstanceId,
        tag: u64,
    ) -> Result<(), BackendError> {
        let _making = self.shared.making.lock().await;
        if self.origins().map_err(files)?.contains(&(id, tag)) {
            return Err(BackendError::SnapshotInUse { tag });
        }
        self.change()?;
        match fs::remove_file(self.snapshot_file(id, tag)) {
            Ok(()) => {
                self.collect().await;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BackendError::SnapshotNotFound { which: tag.to_string() })
            }
            Err(error) => Err(files(error)),
        }
    }

    pub(super) async fn forget_snapshots(&self, id: InstanceId) -> Result<(), BackendError> {
        let _making = self.shared.making.lock().await;
        // A disk that was to be made, and is not wanted any more.
        self.promised().remove(&id);
        self.change()?;
        match fs::remove_dir_all(self.snapshots_dir(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(files(error)),
            Ok(()) | Err(_) => {}
        }
        self.collect().await;
        Ok(())
    }

    /// Returns the layers that snapshots of any VM are built on.
    pub(super) fn snapshot_layers(&self) -> io::Result<BTreeSet<String>> {
        let mut layers = BTreeSet::new();
        let owners = match fs::read_dir(self.snapshots_root()) {
            Ok(owners) => owners,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(layers),
            Err(error) => return Err(error),
        };
        for owner in owners {
            let Some(Ok(id)) = owner?.file_name().to_str().map(str::parse::<InstanceId>) else {
                continue;
            };
            for tag in self.tags(id)? {
                if let Some(snapshot) = read::<SnapshotFile>(&self.snapshot_file(id, tag))? {
                    layers.insert(snapshot.layer);
                }
            }
        }
        Ok(layers)
    }
}

/// Has a running QEMU write to the next disk from now on.
async fn go_over(live: &Live, dir: &MachineDir, next: &str, tag: u64) -> Result<(), QmpError> {
    let blocks = live.qmp.execute("query-block", json!({})).await?;
    // Each snapshot gives the disk another name.
    let node = blocks.as_array().into_iter().flatten().find_map(|block| {
        let device = block["qdev"].as_str()?;
        let node = block["inserted"]["node-name"].as_str()?;
        device.contains(ROOT_DEVICE).then(|| node.to_owned())
    });
    let node = node.unwrap_or_else(|| ROOT_NODE.to_owned());
    let frozen = GuestAgent::freeze(&dir.path().join(RUN_DIR)).await;
    let over = json!({"node-name": node, "snapshot-file": next, "mode": "existing",
        "format": "qcow2", "snapshot-node-name": format!("root-{tag}")});
    let outcome = live.qmp.execute("blockdev-snapshot-sync", over).await;
    if let Some(agent) = frozen {
        agent.thaw().await;
    }
    outcome.map(drop)
}
