//! Writes local files. The content of a VPS is not trusted: it cannot lead outside the target by
//! paths (see [`Item::of`]) nor by symlinks, because this copy writes only into directories that it
//! has created or checked itself.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kohakuriver_agent_protocol::files::{Time, partial_name};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc::Receiver;

use super::super::item::{Item, Part, What};
use super::super::remote::WORTH_RESUMING;
use super::super::report::{Report, add};
use super::{sentence, source};
use crate::error::CommandError;

/// Permission bits only: a VPS must not set set-user-id bits on this computer's files.
const MODE: u32 = 0o777;

/// Writes the parts that arrive.
pub fn write(root: &Path, report: &Report, parts: &mut Receiver<Part>) -> Result<(), CommandError> {
    let mut tree = Tree { root, report, entered: HashSet::new(), made: Vec::new() };
    let result = tree.take_all(parts);
    // Last, because a mode may forbid writing into its directory.
    for (path, mode) in tree.made.into_iter().rev() {
        let _ = fs::set_permissions(path, Permissions::from_mode(mode & MODE));
    }
    result
}

struct Tree<'a> {
    root: &'a Path,
    report: &'a Report,
    /// Relative paths of directories that are no symlinks.
    entered: HashSet<PathBuf>,
    made: Vec<(PathBuf, u32)>,
}

impl Tree<'_> {
    fn take_all(&mut self, parts: &mut Receiver<Part>) -> Result<(), CommandError> {
        while let Some(part) = parts.blocking_recv() {
            let (path, result) = match part {
                Part::Directory(item) => (item.under(self.root), self.directory(&item)),
                Part::Link(item) => (item.under(self.root), self.link(&item)),
                Part::Begin { item, size, offset } => {
                    let path = item.under(self.root);
                    let result = self.file(&path, &item, size, offset, parts);
                    (path, result)
                }
                // The rest of a file that could not be written.
                Part::Data(_) | Part::End | Part::Broken(_) => continue,
            };
            if let Err(error) = result {
                if is_full(&error) {
                    let text = format!(
                        "the disk of this computer is full: {} was not written",
                        path.display()
                    );
                    return Err(CommandError::request(text)
                        .hint("free disk space, then run the same command again"));
                }
                self.report.fail(path.display().to_string(), sentence(&path, &error));
            }
        }
        Ok(())
    }

    fn directory(&mut self, item: &Item) -> io::Result<()> {
        let path = item.under(self.root);
        self.check_parent(&item.way)?;
        match DirBuilder::new().mode(0o700 | item.mode & MODE).create(&path) {
            Ok(()) => self.made.push((path, item.mode)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let meta = path.symlink_metadata()?;
                let is_root = item.way.as_os_str().is_empty();
                if !(meta.is_dir() || is_root && path.is_dir()) {
                    return Err(io::Error::other("it exists already and is not a directory"));
                }
            }
            Err(error) => return Err(error),
        }
        self.entered.insert(item.way.clone());
        add(&self.report.directories, 1);
        Ok(())
    }

    fn check_parent(&self, way: &Path) -> io::Result<()> {
        match way.parent() {
            Some(parent) if !self.entered.contains(parent) => {
                Err(io::Error::other("its directory could not be created"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn link(&self, item: &Item) -> io::Result<()> {
        let What::Link { target } = &item.what else { return Ok(()) };
        self.check_parent(&item.way)?;
        let path = item.under(self.root);
        match symlink(target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let partial = partial_path(&path);
                let _ = fs::remove_file(&partial);
                symlink(target, &partial)?;
                fs::rename(&partial, &path).inspect_err(|_| drop(fs::remove_file(&partial)))?;
            }
            other => other?,
        }
        add(&self.report.links, 1);
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        item: &Item,
        size: u64,
        offset: u64,
        parts: &mut Receiver<Part>,
    ) -> io::Result<()> {
        if !item.way.as_os_str().is_empty() {
            self.check_parent(&item.way)?;
        }
        let partial = partial_path(path);
        let mut file = open(&partial, offset, item.mtime)?;
        add(&self.report.spared, offset);
        let resumable = size >= WORTH_RESUMING;
        if resumable {
            // Before there is content, so that the time is right whenever this process ends.
            futimens(&file, &spec(item.mtime), &TimeSpec::UTIME_OMIT)?;
        }
        let result = self.fill(&mut file, parts);
        let whole = match result {
            Ok(whole) => whole,
            Err(error) => {
                let _ = fs::remove_file(&partial);
                return Err(error);
            }
        };
        if !whole {
            if !resumable {
                let _ = fs::remove_file(&partial);
            }
            return Ok(());
        }
        file.set_permissions(Permissions::from_mode(item.mode & MODE))?;
        futimens(&file, &TimeSpec::UTIME_NOW, &spec(item.mtime))?;
        let (ours, there) = (file.metadata()?, partial.symlink_metadata()?);
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::other("another copy to the same path is in progress"));
        }
        fs::rename(&partial, path).inspect_err(|_| drop(fs::remove_file(&partial)))?;
        add(&self.report.files, 1);
        add(&self.report.resumed, u64::from(offset > 0));
        Ok(())
    }

    /// Writes a file's data. Returns whether the file is complete.
    fn fill(&self, file: &mut File, parts: &mut Receiver<Part>) -> io::Result<bool> {
        loop {
            match parts.blocking_recv() {
                Some(Part::Data(data)) => {
                    file.write_all(&data)?;
                    add(&self.report.bytes, data.len() as u64);
                }
                Some(Part::End) => return Ok(true),
                Some(Part::Broken(why)) => return Err(io::Error::other(why)),
                // The source's stage ended early and reports the reason itself.
                Some(Part::Directory(_) | Part::Link(_) | Part::Begin { .. }) | None => {
                    return Ok(false);
                }
            }
        }
    }
}

fn open(partial: &Path, offset: u64, wanted: Time) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW;
    if offset == 0 {
        match fs::remove_file(partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        return OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial);
    }
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(partial)?;
    let meta = file.metadata()?;
    if meta.len() < offset || source(&meta) != wanted {
        return Err(io::Error::other(
            "its partial copy changed; run the same command again to copy it from its start",
        ));
    }
    file.set_len(offset)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file)
}

fn spec(Time(seconds, nanoseconds): Time) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}

fn partial_path(path: &Path) -> PathBuf {
    path.with_file_name(partial_name(path.file_name().unwrap_or(OsStr::new("copy"))))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
