//! Open handles and operations on files, with the rights of the process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};

use super::output::{Code, Refusal};
use super::request::{OpenFlags, SetAttributes};

/// The usual default limit of open files per process.
pub(crate) const MAX_HANDLES: usize = 1000;

/// Something open.
#[derive(Debug)]
pub(super) enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir },
}

/// The open files and directories, by handle.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u32, Open>,
    next: u32,
}

impl Handles {
    pub fn add(&mut self, open: Open) -> Result<u32, Refusal> {
        if self.open.len() >= MAX_HANDLES {
            return Err(Refusal::new(Code::Failure, "Too many open files"));
        }
        while self.open.contains_key(&self.next) || self.next == u32::MAX {
            self.next = self.next.wrapping_add(1);
        }
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, open);
        Ok(handle)
    }

    pub fn close(&mut self, handle: u32) -> Result<(), Refusal> {
        self.open.remove(&handle).map(drop).ok_or_else(not_open)
    }

    pub fn file(&self, handle: u32) -> Result<(&File, bool), Refusal> {
        match self.open.get(&handle) {
            Some(Open::File { file, append }) => Ok((file, *append)),
            Some(Open::Directory { .. }) | None => Err(not_open()),
        }
    }

    pub fn directory(&mut self, handle: u32) -> Result<&mut ReadDir, Refusal> {
        match self.open.get_mut(&handle) {
            Some(Open::Directory { entries, .. }) => Ok(entries),
            Some(Open::File { .. }) | None => Err(not_open()),
        }
    }

    pub fn metadata(&self, handle: u32) -> Result<fs::Metadata, Refusal> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file.metadata()?),
            Some(Open::Directory { path, .. }) => Ok(fs::metadata(path)?),
            None => Err(not_open()),
        }
    }
}

fn not_open() -> Refusal {
    Refusal::new(Code::Failure, "Not open")
}

pub(super) fn open(path: &Path, flags: OpenFlags, wanted: SetAttributes) -> Result<Open, Refusal> {
    let (append, write) = (flags.append(), flags.write());
    let mut options = OpenOptions::new();
    options
        .read(flags.read() || !(write || append))
        .write(write && !append)
        .append(append)
        .truncate(write && flags.truncate() && !append)
        .mode(wanted.permissions.unwrap_or(0o666))
        // A named pipe without another end would hold this up for ever; files do not care.
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK);
    if write || append {
        options.create(flags.create()).create_new(flags.create() && flags.exclusive());
    }
    let file = match options.open(path) {
        // Somebody holds a lease on it, and gives it up for whoever waits.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            options.custom_flags(libc::O_NOCTTY).open(path)
        }
        opened => opened,
    }?;
    Ok(Open::File { file, append })
}

pub(super) fn open_directory(path: &Path) -> Result<Open, Refusal> {
    Ok(Open::Directory { path: path.to_owned(), entries: fs::read_dir(path)? })
}

pub(super) fn write(file: &File, append: bool, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut stream = file;
    if append { io::Write::write_all(&mut stream, data) } else { file.write_all_at(data, offset) }
}

pub(super) fn make_directory(path: &Path, wanted: SetAttributes) -> io::Result<()> {
    fs::DirBuilder::new().mode(wanted.permissions.unwrap_or(0o777)).create(path)
}

/// Renames, but never onto something that exists, as version 3 has it. Clients that want that use posix-rename.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Refusal> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(Refusal::new(Code::Failure, "The new name exists"));
    }
    Ok(fs::rename(from, to)?)
}

/// The file whose attributes are set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    File(&'a File),
    Path(&'a Path),
    /// A symbolic link itself, where the last part of the path is one.
    Link(&'a Path),
}

/// Applies the attributes that are present, the size first and the times last, since each changes the later ones.
pub(super) fn set(target: Target<'_>, wanted: &SetAttributes) -> Result<(), Refusal> {
    if let Some(size) = wanted.size {
        match target {
            Target::File(file) => file.set_len(size)?,
            Target::Path(path) => OpenOptions::new().write(true).open(path)?.set_len(size)?,
            Target::Link(_) => return Err(Refusal::new(Code::Unsupported, "A link has no size")),
        }
    }
    if let Some((uid, gid)) = wanted.owner {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match target {
            Target::File(file) => fchown(file, uid, gid)?,
            Target::Path(path) => nix::unistd::chown(path, uid, gid)?,
            Target::Link(path) => fchownat(AT_FDCWD, path, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?,
        }
    }
    if let Some(mode) = wanted.permissions {
        let mode = fs::Permissions::from_mode(mode);
        match target {
            Target::File(file) => file.set_permissions(mode)?,
            Target::Path(path) => fs::set_permissions(path, mode)?,
            Target::Link(path) if fs::symlink_metadata(path)?.is_symlink() => {
                return Err(Refusal::new(Code::Unsupported, "A link has no permissions"));
            }
            Target::Link(path) => fs::set_permissions(path, mode)?,
        }
    }
    if let Some((accessed, modified)) = wanted.times {
        let (accessed, modified) =
            (TimeSpec::new(accessed.into(), 0), TimeSpec::new(modified.into(), 0));
        let of_path = |path, follow| utimensat(AT_FDCWD, path, &accessed, &modified, follow);
        match target {
            Target::File(file) => futimens(file.as_fd(), &accessed, &modified)?,
            Target::Path(path) => of_path(path, UtimensatFlags::FollowSymlink)?,
            Target::Link(path) => of_path(path, UtimensatFlags::NoFollowSymlink)?,
        }
    }
    Ok(())
}

/// An absolute path without links. What does not exist is still made absolute: clients ask before they create.
pub(super) fn real_path(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let full = std::path::absolute(path)?;
    match (full.parent().map(fs::canonicalize), full.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        (_, _) => Ok(full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_bounded_and_used_again() {
        let open = || Open::File { file: File::open("/dev/null").unwrap(), append: false };
        let mut handles = Handles { next: u32::MAX - 1, ..Handles::default() };
        assert_eq!(handles.add(open()).unwrap(), u32::MAX - 1);
        assert_eq!(handles.add(open()).unwrap(), 0);
        handles.close(0).unwrap();
        assert!(handles.close(0).is_err());
        for _ in 1..MAX_HANDLES {
            handles.add(open()).unwrap();
        }
        assert!(handles.add(open()).is_err());
    }

    #[test]
    fn a_path_that_is_not_there_is_made_absolute_where_its_folder_is() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        let path = base.join("link/../link/new");
        assert_eq!(real_path(&path).unwrap(), base.join("real/new"));
    }
}
