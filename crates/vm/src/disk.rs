//! The disks of machines: what a machine writes lies over layers that nobody writes any more.
//!
//! ```text
//!  <root>/layers/image-<digest>/     disk.qcow2  layer.json  ... an image, linked or copied
//!  <root>/layers/<task>-<tag>/       the same                   what a snapshot froze
//!  <root>/disks/<task>/disk.qcow2                               what the machine writes
//!
//!   freeze:  disk ---link---> layer, next disk over it      (disk and layer are one file)
//!            running: QEMU goes over to the next disk
//!            the machine's record names the next disk
//! ```
//!
//! Layers and disks lie equally deep, so the relative name that a file has for what is below it
//! stays right when a disk becomes a layer. A crash between any two steps leaves a disk that has
//! everything: [`Disks::settle`] finishes what the record says was begun. A layer goes when nothing is built on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::command::DISK;

mod cut;

pub use cut::Cut;

/// A disk that is not finished.
const UNNAMED: &str = "unfinished.qcow2";
const UNFINISHED: &str = ".unfinished-";
const TOOL_LIMIT: Duration = Duration::from_secs(60);
/// It copies what all the layers of a disk hold.
const REBASE_LIMIT: Duration = Duration::from_secs(3600);
const ABOUT: &str = "layer.json";
/// Space that stays free on the node: what is running must be able to write.
const RESERVE_BYTES: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("the node's disk is full: {0}")]
    Full(String),
    #[error("{0}")]
    Files(#[from] io::Error),
    #[error("qemu-img cannot be run: {0}")]
    NoTool(io::Error),
    #[error("qemu-img failed: {0}")]
    Tool(String),
    #[error("layer {0} is damaged or missing")]
    Layer(String),
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The layer below it.
    pub below: Option<String>,
    pub virtual_bytes: u64,
}

/// The layers and disks below one directory.
#[derive(Clone, Debug)]
pub struct Disks {
    root: PathBuf,
    adopting: Arc<Mutex<()>>,
    cut: Cut,
}

impl Disks {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), adopting: Arc::default(), cut: Cut::default() }
    }

    /// Before each change of files that a crash may come between; never refuses outside of tests.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub fn disks_dir(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub fn layer_dir(&self, name: &str) -> PathBuf {
        self.layers_dir().join(name)
    }

    /// Makes the directories. QEMU's own user may pass through them, and list none.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn prepare(&self) -> io::Result<()> {
        for dir in [self.root.clone(), self.layers_dir(), self.disks_dir()] {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        }
        Ok(())
    }

    /// Refuses what could not end well: a disk grows while its machine writes.
    ///
    /// # Errors
    /// There is less space than `bytes` and a reserve.
    pub fn check_space(&self, bytes: u64) -> Result<(), DiskError> {
        let about = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from)?;
        let free = about.blocks_available() * about.fragment_size();
        if free < bytes.saturating_add(RESERVE_BYTES) {
            let mebibytes = |bytes: u64| bytes >> 20;
            return Err(DiskError::Full(format!(
                "{} MiB are free, and a new machine needs {} MiB at least",
                mebibytes(free),
                mebibytes(bytes.saturating_add(RESERVE_BYTES))
            )));
        }
        Ok(())
    }

    /// Makes a layer of an image's files, each a path and its name in the layer: further names of
    /// the files, or copies where the image is on another filesystem. Replacing or deleting the
    /// image leaves the layer as it is. `whole` says of a directory that the files in it belong
    /// together: the image may be replaced while it is linked.
    ///
    /// # Errors
    /// The image cannot be read or was replaced meanwhile, or there is no space for a copy.
    pub async fn adopt_image(
        &self,
        name: &str,
        files: Vec<(PathBuf, &'static str)>,
        virtual_bytes: u64,
        whole: impl Fn(&Path) -> bool + Send + 'static,
        copying: impl Fn(u8) + Send + 'static,
    ) -> Result<(), DiskError> {
        if self.layer(name).is_ok() {
            return Ok(());
        }
        let (this, name) = (self.clone(), name.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            // Two machines of a new image at once make one layer.
            let _turn = this.adopting.lock().unwrap_or_else(PoisonError::into_inner);
            if this.layer(&name).is_ok() {
                return Ok(());
            }
            let dir = this.layers_dir().join(format!("{UNFINISHED}{name}"));
            let made = this.gather(&dir, files, virtual_bytes, &whole, &copying);
            let made = made.and_then(|()| {
                this.cut.point()?;
                let _ = fs::remove_dir_all(this.layer_dir(&name));
                this.cut.point()?;
                fs::rename(&dir, this.layer_dir(&name))?;
                Ok(kohakuriver_durable::sync_dir(&this.layers_dir())?)
            });
            if made.is_err() && this.cut.point().is_ok() {
                let _ = fs::remove_dir_all(&dir);
            }
            made
        });
        work.await.map_err(io::Error::other)?
    }

    fn gather(
        &self,
        dir: &Path,
        files: Vec<(PathBuf, &'static str)>,
        virtual_bytes: u64,
        whole: &impl Fn(&Path) -> bool,
        copying: &impl Fn(u8),
    ) -> Result<(), DiskError> {
        self.cut.point()?;
        let _ = fs::remove_dir_all(dir);
        make_dir(dir)?;
        for (from, to) in files {
            self.cut.point()?;
            let to = dir.join(to);
            if fs::hard_link(&from, &to).is_err() {
                self.check_space(fs::metadata(&from)?.len())?;
                copy(&from, &to, copying)?;
            }
            fs::set_permissions(&to, fs::Permissions::from_mode(0o444))?;
        }
        if !whole(dir) {
            let why = "the image was replaced in this very moment; try again";
            return Err(io::Error::other(why).into());
        }
        self.cut.point()?;
        describe(dir, &Layer { below: None, virtual_bytes })
    }

    /// # Errors
    /// There is no such layer, or only half of one.
    pub fn layer(&self, name: &str) -> Result<Layer, DiskError> {
        let dir = self.layer_dir(name);
        let missing = || DiskError::Layer(name.to_owned());
        let text = match fs::read(dir.join(ABOUT)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        if !dir.join(DISK).try_exists()? {
            return Err(missing());
        }
        serde_json::from_slice(&text).map_err(|_| missing())
    }

    /// The layer and those below it, from the top.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn chain(&self, top: &str) -> Result<Vec<String>, DiskError> {
        let mut names = vec![top.to_owned()];
        while let Some(below) = self.layer(&names[names.len() - 1])?.below {
            if names.contains(&below) {
                return Err(DiskError::Layer(below));
            }
            names.push(below);
        }
        Ok(names)
    }

    /// Bytes that the layer itself takes on the node's disk.
    pub fn own_bytes(&self, name: &str) -> u64 {
        fs::metadata(self.layer_dir(name).join(DISK)).map_or(0, |about| about.blocks() * 512)
    }

    /// Makes a machine's disk over a layer, at least as large.
    ///
    /// # Errors
    /// qemu-img fails.
    pub async fn create(&self, dir: &Path, layer: &str, bytes: u64) -> Result<(), DiskError> {
        let bytes = bytes.max(self.layer(layer)?.virtual_bytes);
        self.cut.point()?;
        overlay(dir, DISK, layer, bytes).await
    }

    /// First half of freezing the disk `current` in `dir`: afterwards the layer `name` is another
    /// name of it, and `next` is an empty disk over that layer.
    ///
    /// No disk is ever renamed: a QEMU that has it open may open it again by its name.
    ///
    /// # Errors
    /// What was made goes with [`Self::undo_freeze`].
    pub async fn begin_freeze(
        &self,
        dir: &Path,
        current: &str,
        name: &str,
        next: &str,
    ) -> Result<(), DiskError> {
        let layer = self.layer_dir(name);
        self.cut.point()?;
        make_dir(&layer)?;
        let file = layer.join(DISK);
        self.cut.point()?;
        let _ = fs::remove_file(&file);
        fs::hard_link(dir.join(current), &file)?;
        let bytes = virtual_bytes(&file)?;
        self.cut.point()?;
        // It has its name when it is whole: who finds it knows that it can be gone over to.
        overlay(dir, UNNAMED, name, bytes).await?;
        copy_owner(&dir.join(current), &dir.join(UNNAMED))?;
        self.cut.point()?;
        fs::rename(dir.join(UNNAMED), dir.join(next))?;
        kohakuriver_durable::sync_dir(dir)?;
        Ok(())
    }

    /// Second half: what was frozen is a layer over `below`.
    ///
    /// # Errors
    /// The layer's files cannot be described.
    pub fn finish_freeze(&self, name: &str, below: &str) -> Result<(), DiskError> {
        let dir = self.layer_dir(name);
        let virtual_bytes = virtual_bytes(&dir.join(DISK))?;
        self.cut.point()?;
        describe(&dir, &Layer { below: Some(below.to_owned()), virtual_bytes })
    }

    /// Takes back the first half, for a QEMU that would not go over to the next disk.
    ///
    /// # Errors
    /// Something of it cannot be removed.
    pub fn undo_freeze(&self, dir: &Path, name: &str, next: &str) -> io::Result<()> {
        for file in [next, UNNAMED] {
            self.cut.point()?;
            unless_gone(fs::remove_file(dir.join(file)))?;
        }
        self.cut.point()?;
        unless_gone(fs::remove_dir_all(self.layer_dir(name)))
    }

    /// Finishes a freeze that was cut off, or takes it back: tells whether `next` is the disk now.
    /// Whether or not QEMU went over to it, all that was written is in it or below it.
    ///
    /// # Errors
    /// The files cannot be read or described.
    pub fn settle(
        &self,
        dir: &Path,
        name: &str,
        next: &str,
        below: &str,
    ) -> Result<bool, DiskError> {
        if !dir.join(next).try_exists()? {
            self.undo_freeze(dir, name, next)?;
            return Ok(false);
        }
        self.finish_freeze(name, below)?;
        Ok(true)
    }

    /// Has a disk lie directly over the image, with what the layers between held; reads get slower
    /// with each layer. The machine must not run. `tool` runs qemu-img with these arguments in
    /// `dir` as the user who may write the disk: what that one wrote there, names of files among
    /// it, is not read by anybody who may read more.
    ///
    /// # Errors
    /// qemu-img fails, or there is no space; the disk is as it was then.
    pub async fn flatten(
        &self,
        dir: &Path,
        current: &str,
        base: &str,
        tool: impl FnOnce(&[&str]) -> Command,
    ) -> Result<(), DiskError> {
        let (from, to) = (dir.join(current), dir.join(UNNAMED));
        let copied = tokio::task::spawn_blocking(move || {
            let _ = fs::remove_file(&to);
            copy(&from, &to, &|_| {})?;
            copy_owner(&from, &to)
        });
        let flat = async {
            copied.await.map_err(io::Error::other)??;
            let below = format!("../../layers/{base}/{DISK}");
            let mut rebase =
                tool(&["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, UNNAMED]);
            rebase.stdin(Stdio::null()).kill_on_drop(true);
            run(rebase, REBASE_LIMIT).await?;
            File::open(dir.join(UNNAMED))?.sync_all()?;
            fs::rename(dir.join(UNNAMED), dir.join(current))?;
            Ok(kohakuriver_durable::sync_dir(dir)?)
        };
        let outcome: Result<(), DiskError> = flat.await;
        if outcome.is_err() {
            let _ = fs::remove_file(dir.join(UNNAMED));
        }
        outcome
    }

    /// Removes the files of disks that are not the machine's any more. It must not run.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not removed.
    pub fn drop_old_disks(&self, dir: &Path, current: &str) -> io::Result<()> {
        for entry in read_dir(dir)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".qcow2") && name != current {
                self.cut.point()?;
                fs::remove_file(dir.join(&*name))?;
            }
        }
        Ok(())
    }

    /// The names of all layers, also of half-made ones.
    ///
    /// # Errors
    /// Their directory cannot be read.
    pub fn layers(&self) -> io::Result<impl Iterator<Item = String>> {
        let names = read_dir(&self.layers_dir())?.into_iter();
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: Vec<String> = names.collect::<io::Result<_>>()?;
        Ok(names.into_iter().filter(|name| !name.starts_with(UNFINISHED)))
    }

    /// Removes every layer that none of `used` is built on, and copies of images that were cut off.
    ///
    /// # Errors
    /// A layer cannot be removed.
    pub fn collect(&self, used: &BTreeSet<String>) -> io::Result<()> {
        self.remove_unfinished()?;
        let mut below = BTreeMap::new();
        for name in self.layers()? {
            let next = match self.layer(&name) {
                Ok(layer) => layer.below,
                // Half of one: nothing can be built on it.
                Err(DiskError::Layer(_)) => None,
                Err(error) => return Err(io::Error::other(error)),
            };
            below.insert(name, next);
        }
        let mut kept = BTreeSet::new();
        for name in used {
            let mut next = Some(name.clone());
            while let Some(name) = next {
                next = if kept.insert(name.clone()) { below.remove(&name).flatten() } else { None };
            }
        }
        for name in below.keys().filter(|name| !kept.contains(*name)) {
            tracing::debug!(layer = name, "nothing is built on this layer any more");
            self.cut.point()?;
            fs::remove_dir_all(self.layer_dir(name))?;
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> io::Result<()> {
        // Held by what is being copied now, which may take long.
        let _turn = match self.adopting.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        for entry in read_dir(&self.layers_dir())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                self.cut.point()?;
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn read_dir(dir: &Path) -> io::Result<Vec<io::Result<fs::DirEntry>>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(dir)
}

fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unless_root(error: io::Error) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() { Err(error) } else { Ok(()) }
}

fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    let about = fs::metadata(from)?;
    fs::set_permissions(to, about.permissions())?;
    std::os::unix::fs::chown(to, Some(about.uid()), Some(about.gid())).or_else(unless_root)
}

fn copy(from: &Path, to: &Path, copying: &impl Fn(u8)) -> io::Result<()> {
    let (mut source, mut target) = (File::open(from)?, File::create(to)?);
    let total = source.metadata()?.len().max(1);
    let mut copied = 0;
    loop {
        // The kernel copies; in pieces, so that there is something to say.
        let piece = io::copy(&mut io::Read::take(&mut source, 64 << 20), &mut target)?;
        if piece == 0 {
            return target.sync_all();
        }
        copied += piece;
        copying(u8::try_from(copied * 100 / total).unwrap_or(100));
    }
}

async fn overlay(dir: &Path, name: &str, layer: &str, bytes: u64) -> Result<(), DiskError> {
    let mut create = tool(dir);
    let below = format!("../../layers/{layer}/{DISK}");
    // Unopened: a running machine has what is below it locked.
    create.args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below, name]);
    create.arg(bytes.to_string());
    run(create, TOOL_LIMIT).await
}

/// What the header of a disk says of its size. Read here: the disk is QEMU's to write, and
/// qemu-img would open whatever else its header names. Offsets are those of QEMU's
/// docs/interop/qcow2.
fn virtual_bytes(disk: &Path) -> Result<u64, DiskError> {
    let mut header = [0; 32];
    File::open(disk).and_then(|mut file| io::Read::read_exact(&mut file, &mut header))?;
    let (magic, size) = (&header[..4], &header[24..]);
    if magic != b"QFI\xfb" {
        return Err(DiskError::Tool(format!("{} is not in qcow2 format", disk.display())));
    }
    Ok(size.iter().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte)))
}

/// Writes a layer's description, which makes it one.
fn describe(dir: &Path, layer: &Layer) -> Result<(), DiskError> {
    let file = dir.join(DISK);
    // Whoever runs over it reads it; nobody writes it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
    std::os::unix::fs::chown(&file, Some(0), Some(0)).or_else(unless_root)?;
    let text = serde_json::to_vec(layer).map_err(io::Error::other)?;
    Ok(kohakuriver_durable::write(&dir.join(ABOUT), &text, 0o644)?)
}

fn tool(dir: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(mut command: Command, limit: Duration) -> Result<(), DiskError> {
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output
        .map_err(|_| DiskError::Tool(format!("it did not end within {} s", limit.as_secs())))?
        .map_err(DiskError::NoTool)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("qemu-img: ").to_owned();
    Err(if said.contains("No space left") { DiskError::Full(said) } else { DiskError::Tool(said) })
}

#[cfg(test)]
mod tests;
