//! Base images of virtual machines: kept, imported, built from the distribution's packages.
//!
//! ```text
//!  <shared>/vm-images/NAME/disk.qcow2        what machines' disks begin as
//!                          image.json        [meta]
//!                          vmlinuz, initrd   where the image is started without a boot loader
//!                     .pending-N/            one that is being made [pending]
//!
//!  create, import --> .pending-N --commit--> NAME --delete--> gone
//! ```
//!
//! A finished image is never changed: it is replaced whole, in one step, and nodes that have
//! taken its disk (by a link or a copy) keep what they have. So neither replacing nor deleting an
//! image harms a machine that was made from it.

mod build;
mod download;
mod error;
mod header;
mod import;
mod meta;
mod pending;
mod program;
mod qemu_img;
mod space;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use kohakuriver_model::VmImageName;

pub use build::Create;
pub use error::ImageError;
pub use import::{DirectBoot, Import, Source};
pub use meta::{
    DISK_FILE, Firmware, INITRD_FILE, ImageMeta, KERNEL_FILE, Kernel, KernelWhen, META_FILE,
};
pub use program::Missing;

/// Hears what is being done, and how much of it is behind, where that is known.
pub type Report<'a> = &'a (dyn Fn(&str, Option<u8>) + Send + Sync);

/// A description is a few lines.
const MAX_META_BYTES: u64 = 64 << 10;
/// While one image takes another's place on a file system that cannot exchange two directories,
/// there is none of that name for a moment.
const RETRIES: u32 = 20;
const RETRY: Duration = Duration::from_millis(25);

/// All images of a cluster: a directory in its shared storage.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

/// One image, as it was when it was looked at.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: VmImageName,
    pub dir: PathBuf,
    pub disk: PathBuf,
    pub meta: ImageMeta,
    /// What it takes of the storage.
    pub size_bytes: u64,
    pub modified_ms: u64,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Listing {
    pub images: Vec<Image>,
    /// Those that cannot be used, each with its reason.
    pub broken: Vec<(VmImageName, ImageError)>,
}

impl ImageStore {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// By name; nothing where the directory does not exist yet.
    pub fn list(&self) -> Result<Listing, ImageError> {
        let mut listing = Listing::default();
        for name in self.names()? {
            match self.look(&name) {
                Ok(Some(image)) => listing.images.push(image),
                Ok(None) => {}
                Err(error) => listing.broken.push((name, error)),
            }
        }
        Ok(listing)
    }

    /// # Errors
    /// It does not exist ([`ImageError::Unknown`]) or cannot be used ([`ImageError::Broken`]).
    pub fn get(&self, name: &VmImageName) -> Result<Image, ImageError> {
        for _ in 0..RETRIES {
            if let Some(image) = self.look(name)? {
                return Ok(image);
            }
            if !pending::parked(&self.dir, name).exists() {
                break;
            }
            std::thread::sleep(RETRY);
        }
        // Between the two looks above, the new one may have come.
        match self.look(name)? {
            Some(image) => Ok(image),
            None => Err(ImageError::Unknown { name: name.clone(), known: self.names()? }),
        }
    }

    /// Machines that were made from it are not harmed. A damaged one can be deleted too.
    ///
    /// # Errors
    /// It does not exist, or may not be removed.
    pub fn delete(&self, name: &VmImageName) -> Result<(), ImageError> {
        if !self.has(name) {
            return Err(ImageError::Unknown { name: name.clone(), known: self.names()? });
        }
        pending::delete(&self.dir, name)
    }

    /// Whether the name is taken, be it by a damaged image.
    pub fn has(&self, name: &VmImageName) -> bool {
        fs::symlink_metadata(self.dir.join(name.as_str())).is_ok()
    }

    fn names(&self) -> Result<Vec<VmImageName>, ImageError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ImageError::io("list the images in", &self.dir)(error)),
        };
        let mut names: Vec<VmImageName> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            // Hidden directories are no names: what is being made there is no image yet.
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    fn look(&self, name: &VmImageName) -> Result<Option<Image>, ImageError> {
        let dir = self.dir.join(name.as_str());
        let broken =
            |reason: String| ImageError::Broken { name: name.clone(), dir: dir.clone(), reason };
        let meta_file = match File::open(dir.join(META_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                return Ok(None);
            }
            Err(error) => return Err(broken(format!("its {META_FILE} cannot be read: {error}"))),
        };
        let modified_ms = modified_ms(&meta_file);
        let meta: ImageMeta = serde_json::from_reader(io::Read::take(meta_file, MAX_META_BYTES))
            .map_err(|error| broken(format!("its {META_FILE} cannot be read: {error}")))?;
        let disk = dir.join(DISK_FILE);
        let found = match fs::metadata(&disk) {
            Ok(found) => found,
            Err(error) => return Err(broken(format!("its {DISK_FILE} cannot be read: {error}"))),
        };
        if found.len() != meta.disk_bytes {
            return Err(broken(format!(
                "its {DISK_FILE} has {} bytes, not {}: it was copied halfway, or changed",
                found.len(),
                meta.disk_bytes
            )));
        }
        if let Some(lacking) = meta.kernel.as_ref().and_then(|_| {
            [KERNEL_FILE, INITRD_FILE].into_iter().find(|file| !dir.join(file).is_file())
        }) {
            return Err(broken(format!("it has no {lacking}")));
        }
        Ok(Some(Image {
            name: name.clone(),
            disk,
            meta,
            size_bytes: found.blocks() * 512,
            modified_ms,
            dir,
        }))
    }
}

impl Image {
    pub fn kernel_file(&self) -> PathBuf {
        self.dir.join(KERNEL_FILE)
    }

    pub fn initrd_file(&self) -> PathBuf {
        self.dir.join(INITRD_FILE)
    }
}

fn modified_ms(file: &File) -> u64 {
    let modified = file.metadata().and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
