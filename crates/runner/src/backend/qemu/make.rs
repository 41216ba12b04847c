//! A machine's beginning and its end: a layer to lie on, a record, a disk.
//!
//! ```text
//!  prepare: image --linked--> layer            snapshot --known--> layer
//!  make:    record (address taken) -> disk     unmake: directory, then what nothing is built on
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use kohakuriver_model::spec::DEFAULT_VM_DISK_BYTES;
use kohakuriver_model::{ImageSource, InstanceId, VmImageName};
use kohakuriver_runner_link::protocol::Order;
use kohakuriver_vm::command::DISK;
use kohakuriver_vm::image::{
    INITRD_FILE, Image, ImageError, ImageMeta, KERNEL_FILE, Listing, META_FILE,
};
use sha2::{Digest, Sha256};

use super::record::{Machine, read};
use super::{QemuBackend, disk, files, host};
use crate::agent_files;
use crate::backend::{BackendError, Progress};

/// Of what is being removed.
const GONE: &str = ".gone-";
/// How the layers of images begin.
const IMAGE: &str = "image-";
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a VM writes during its first boot, with a margin.
const FIRST_WRITES: u64 = 256 << 20;

impl QemuBackend {
    /// Finds the layer that the disk is to lie on; from then on it stays until a disk does.
    pub(super) async fn prepare_layer(
        &self,
        order: &Order,
        progress: Progress<'_>,
    ) -> Result<String, BackendError> {
        // Told before anything is copied.
        self.shared.host.ready().await?;
        self.choose_layer(order, progress).await
    }

    pub(super) async fn choose_layer(
        &self,
        order: &Order,
        progress: Progress<'_>,
    ) -> Result<String, BackendError> {
        self.shared.disks.prepare().map_err(files)?;
        if let Some(wanted) = order.spec.snapshot {
            let layer = self.snapshot_layer(wanted)?;
            self.promise(order.task_id, &layer);
            return Ok(layer);
        }
        let ImageSource::VmImage { name } = &order.spec.image else {
            let reason = "its image is not one of virtual machines".to_owned();
            return Err(BackendError::Refused { by: "QEMU", act: "create", reason });
        };
        let (images, wanted) = (self.shared.images.clone(), name.clone());
        let image = tokio::task::spawn_blocking(move || images.get(&wanted)).await;
        let image = image.map_err(|error| files(io::Error::other(error)))?;
        let image = image.map_err(|error| image_error(name, &error))?;
        self.promise(order.task_id, &layer_name(&image.meta));
        self.link_image(&image, progress).await
    }

    async fn link_image(
        &self,
        image: &Image,
        progress: Progress<'_>,
    ) -> Result<String, BackendError> {
        progress("linking the image".to_owned(), None);
        let layer = layer_name(&image.meta);
        let mut parts = vec![(image.disk.clone(), DISK)];
        if image.meta.kernel.is_some() {
            parts.push((image.kernel_file(), KERNEL_FILE));
            parts.push((image.initrd_file(), INITRD_FILE));
        }
        parts.retain(|(path, _)| path.exists());
        // Last: where it is still the same, so is all that was linked before.
        parts.push((image.dir.join(META_FILE), META_FILE));
        let meta = image.meta.clone();
        let whole = move |dir: &Path| {
            let linked = read::<ImageMeta>(&dir.join(META_FILE)).ok().flatten();
            let length = fs::metadata(dir.join(DISK)).map_or(0, |about| about.len());
            linked.as_ref() == Some(&meta) && length == meta.disk_bytes
        };
        let (report, mut copied) = tokio::sync::watch::channel(0);
        let adopted = self.shared.disks.adopt_image(
            &layer,
            parts,
            image.meta.virtual_bytes,
            whole,
            move |percent| {
                report.send_replace(percent);
            },
        );
        tokio::pin!(adopted);
        loop {
            tokio::select! {
                done = &mut adopted => {
                    done.map_err(disk)?;
                    return Ok(layer.clone());
                }
                Ok(()) = copied.changed() => {
                    progress("copying the image".to_owned(), Some(*copied.borrow()));
                }
            }
        }
    }

    /// Until its disk is made, or it is given up.
    fn promise(&self, id: InstanceId, layer: &str) {
        self.promised().insert(id, layer.to_owned());
    }

    pub(super) fn promised(&self) -> MutexGuard<'_, HashMap<InstanceId, String>> {
        self.shared.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the boot metadata of a layer's image.
    pub(super) fn image_of(&self, base: &str) -> Result<ImageMeta, BackendError> {
        let path = self.shared.disks.layer_dir(base).join(META_FILE);
        let meta = read(&path).map_err(files)?;
        meta.ok_or_else(|| files(io::Error::other(format!("{} is missing", path.display()))))
    }

    pub(super) async fn make(&self, order: &Order, layer: &str) -> Result<(), BackendError> {
        let id = order.task_id;
        let dir = self.dir(id);
        if dir.machine().map_err(files)?.is_some() {
            let reason = "it is there already".to_owned();
            return Err(BackendError::Refused { by: "the node", act: "create", reason });
        }
        let disks = &self.shared.disks;
        disks.check_space(FIRST_WRITES).map_err(disk)?;
        let chain = disks.chain(layer).map_err(disk)?;
        let base = chain.last().cloned().unwrap_or_else(|| layer.to_owned());
        let meta = self.image_of(&base)?;
        let spec = &order.spec;
        let image_bytes = disks.layer(layer).map_err(disk)?.virtual_bytes;
        let wanted = spec.vm_disk_bytes.unwrap_or(DEFAULT_VM_DISK_BYTES.max(image_bytes));
        if wanted < image_bytes {
            return Err(BackendError::Refused {
                by: "the node",
                act: "create",
                reason: format!(
                    "its image has a disk of {} GiB, and a disk can only be larger: give --vm-disk",
                    image_bytes.div_ceil(1 << 30)
                ),
            });
        }
        agent_files::guest_secret(&self.shared.config.layout, id).map_err(files)?;

        let _making = self.shared.making.lock().await;
        let machine = Machine {
            disk_generation: order.intent.disk_generation,
            disk: DISK.to_owned(),
            layer: layer.to_owned(),
            freezing: None,
            base,
            origin: spec.snapshot,
            limits: host::limits(spec),
            numa: spec.numa.clone(),
            gpus: spec.gpus.clone(),
            address: self.free_address()?,
            agent_port: None,
            agent: meta.agent,
            // A copy of a disk that has lived has its own system on it.
            boots_itself: spec.snapshot.is_some(),
        };
        self.change()?;
        let _ = fs::remove_dir_all(dir.path());
        fs::DirBuilder::new().mode(0o711).create(dir.path()).map_err(files)?;
        disks.create(dir.path(), layer, wanted).await.map_err(disk)?;
        // What has a record is a machine: it comes last.
        self.write_machine(&dir, &machine)?;
        self.promised().remove(&id);
        Ok(())
    }

    /// The lowest address that no machine of this node has.
    fn free_address(&self) -> Result<Ipv4Addr, BackendError> {
        let mut taken = BTreeSet::new();
        for id in self.ids().map_err(files)? {
            let dir = self.dir(id);
            // One that runs has an address, also where the record of that is damaged.
            let runs = self.live(id).is_some() || self.unmanaged(id).is_some();
            let machine = if runs { dir.machine() } else { dir.readable_machine() };
            if let Some(machine) = machine.map_err(files)? {
                taken.insert(machine.address);
            }
        }
        self.shared.host.net.free_address(&taken)
    }

    /// Removes a machine that does not run.
    pub(super) async fn unmake(&self, id: InstanceId) -> Result<(), BackendError> {
        let _making = self.shared.making.lock().await;
        self.release(id).await?;
        let dir = self.dir(id);
        // An interrupted removal counts as done: the rest has another name, and goes at the next start.
        let gone = self.shared.disks.disks_dir().join(format!("{GONE}{id}"));
        let cut = self.shared.disks.cut().clone();
        let removed = tokio::task::spawn_blocking(move || {
            cut.point()?;
            let _ = fs::remove_dir_all(&gone);
            cut.point()?;
            match fs::rename(dir.path(), &gone) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            cut.point()?;
            fs::remove_dir_all(&gone)
        });
        removed.await.map_err(|error| files(io::Error::other(error)))?.map_err(files)?;
        self.collect().await;
        Ok(())
    }

    /// Removes leftovers of interrupted removals and creations.
    pub(super) fn sweep_disks(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.shared.disks.disks_dir())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let half = name
                .parse::<InstanceId>()
                .is_ok_and(|id| self.dir(id).machine().is_ok_and(|machine| machine.is_none()));
            if name.starts_with(GONE) || half {
                self.shared.disks.cut().point()?;
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes layers that nothing is built on. An image's own stays for as long as it is the
    /// image's: where it is a copy, the next machine needs none. Where the images cannot be listed
    /// now, their layers stay until the next sweep.
    pub(super) async fn collect(&self) {
        let listing = self.listing().await;
        if listing.is_none() {
            tracing::debug!("cannot list images; their layers are not collected");
        }
        if let Err(error) = self.collect_but(listing.as_ref()) {
            tracing::warn!(%error, "cannot remove unused layers; retried later");
            self.leave_untidy();
        }
    }

    /// Shared storage may hang: one thread waits for it, and nothing else does.
    async fn listing(&self) -> Option<Listing> {
        let turn = Arc::clone(&self.shared.listing).try_lock_owned().ok()?;
        let images = self.shared.images.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            images.list()
        });
        tokio::time::timeout(LIST_LIMIT, listed).await.ok()?.ok()?.ok()
    }

    fn collect_but(&self, listing: Option<&Listing>) -> io::Result<()> {
        let mut used: BTreeSet<String> = self.promised().values().cloned().collect();
        for id in self.ids()? {
            if let Some(machine) = self.dir(id).machine()? {
                used.insert(machine.layer);
                used.extend(machine.freezing.map(|(layer, _)| layer));
            }
        }
        used.extend(self.snapshot_layers()?);
        match listing {
            Some(listing) => {
                used.extend(listing.images.iter().map(|image| layer_name(&image.meta)));
            }
            None => used.extend(self.shared.disks.layers()?.filter(|name| name.starts_with(IMAGE))),
        }
        self.shared.disks.collect(&used)
    }
}

/// Two images may have the same disk and boot in different ways.
fn layer_name(meta: &ImageMeta) -> String {
    let about = serde_json::to_vec(meta).unwrap_or_default();
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&about)[..8]);
    format!("{IMAGE}{}-{digest}", meta.sha256.get(..16).unwrap_or(&meta.sha256))
}

fn image_error(name: &VmImageName, error: &ImageError) -> BackendError {
    BackendError::ImageUnavailable {
        what: format!("VM image {name} cannot be used"),
        reason: error.to_string(),
        hint: error
            .hint()
            .unwrap_or_else(|| "list the images: kohakuriver qemu image list".to_owned()),
    }
}
