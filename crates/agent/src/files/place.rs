//! From paths to open descriptors.
//!
//! A path is opened first, without access to its content (`O_PATH`); then the kernel is asked
//! what was opened, and everything after that goes through the descriptor. So it does not matter
//! what programs of the instance do to names and symlinks in between: what is acted on is what
//! was looked at.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kohakuriver_agent_protocol::files::{Code, Failed, Word, check_real, normalise};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::sys::statfs::fstatfs;

use super::failure::{Outcome, failed};

/// As many as the kernel itself follows.
const MAX_LINKS: usize = 40;
/// File systems of the kernel's own, wherever they are mounted: proc, sysfs, devpts, cgroup,
/// cgroup2, debugfs, securityfs, tracefs.
const KERNELS_OWN: [i64; 8] =
    [0x9fa0, 0x6265_6572, 0x1cd1, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7363_6673, 0x7472_6163];

/// A path as a request names it.
pub(crate) fn path_of(word: Word) -> Outcome<PathBuf> {
    Ok(normalise(&OsString::from(word))?)
}

/// Something that is there, open without access, and allowed.
#[derive(Debug)]
pub(crate) struct Found {
    fd: OwnedFd,
    /// Where it really is.
    pub real: PathBuf,
    pub stat: FileStat,
}

/// A name in a directory that is open and allowed. There may be nothing of that name.
#[derive(Debug)]
pub(crate) struct ResolvedPath {
    pub folder: Found,
    pub name: OsString,
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Found {
    /// Opens what is at `path`; with `follow`, what a symlink there leads to.
    pub fn open(path: &Path, follow: bool) -> Outcome<Self> {
        let flags = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        Self::check(open_path(path, flags).map_err(|error| failed(error, path))?, path)
    }

    pub fn directory(path: &Path) -> Outcome<Self> {
        Self::check(open_path(path, OFlag::O_DIRECTORY).map_err(|error| failed(error, path))?, path)
    }

    fn check(fd: OwnedFd, path: &Path) -> Outcome<Self> {
        let fail = |error| failed(error, path);
        let real = PathBuf::from(readlinkat(AT_FDCWD, handle(&fd).as_path()).map_err(fail)?);
        check_real(&real)?;
        check_disk(&fd)?;
        let stat = fstat(&fd).map_err(fail)?;
        Ok(Self { fd, real, stat })
    }

    /// Opens it for reading: the same file, by its descriptor.
    pub fn reopen(&self) -> Outcome<File> {
        File::open(handle(&self.fd)).map_err(|error| super::failure::failed_io(&error, &self.real))
    }

    /// Opens a directory for its entries and for what has to reach the disk.
    pub fn reopen_directory(&self) -> Outcome<File> {
        OpenOptions::new()
            .read(true)
            .open(handle(&self.fd))
            .map_err(|error| super::failure::failed_io(&error, &self.real))
    }

    pub fn is_directory(&self) -> bool {
        kind_of(&self.stat) == libc::S_IFDIR
    }
}

impl ResolvedPath {
    /// Where `path` is, without looking at what is there.
    pub fn of(path: &Path) -> Outcome<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Failed {
                code: Code::Invalid,
                message: "/ itself cannot be changed".to_owned(),
            });
        };
        Self::in_folder(Found::directory(parent)?, name)
    }

    fn in_folder(folder: Found, name: &OsStr) -> Outcome<Self> {
        check_real(&folder.real.join(name))?;
        Ok(Self { folder, name: name.to_owned() })
    }

    /// Where what is written to `path` must go: through the symlinks there, also when nothing is
    /// at their end.
    pub fn through_links(path: &Path) -> Outcome<Self> {
        let mut place = Self::of(path)?;
        for _ in 0..MAX_LINKS {
            let is_link = place.stat().is_some_and(|stat| kind_of(&stat) == libc::S_IFLNK);
            if !is_link {
                return Ok(place);
            }
            let target = readlinkat(&place.folder, place.name.as_os_str())
                .map_err(|error| failed(error, path))?;
            // Not made shorter as text: `..` behind a symlink is the kernel's to understand.
            let next = place.folder.real.join(target);
            let bytes = next.as_os_str().as_bytes();
            let cut = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            let (parent, name) = (&bytes[..=cut], &bytes[cut + 1..]);
            if matches!(name, b"" | b"." | b"..") {
                return Err(failed(Errno::EISDIR, path));
            }
            let folder = Found::directory(Path::new(OsStr::from_bytes(parent)))?;
            place = Self::in_folder(folder, OsStr::from_bytes(name))?;
        }
        Err(failed(Errno::ELOOP, path))
    }

    /// Returns the status of the entry, symlinks not followed.
    pub fn stat(&self) -> Option<FileStat> {
        stat_in(&self.folder, &self.name).ok()
    }

    pub fn real(&self) -> PathBuf {
        self.folder.real.join(&self.name)
    }
}

/// The directory at `path`, made if it is missing, with what is missing above it.
pub(crate) fn make_directories(path: &Path, mode: Mode) -> Outcome<()> {
    let mut missing = Vec::new();
    let mut there = path;
    let mut folder = loop {
        match Found::directory(there) {
            Ok(found) => break found,
            Err(error) if super::failure::is_gone(&error) => {
                let (Some(parent), Some(name)) = (there.parent(), there.file_name()) else {
                    return Err(error);
                };
                missing.push(name);
                there = parent;
            }
            Err(error) => return Err(error),
        }
    };
    while let Some(name) = missing.pop() {
        let real = folder.real.join(name);
        check_real(&real)?;
        let mode = if missing.is_empty() { mode } else { Mode::from_bits_truncate(0o755) };
        match mkdirat(&folder, name, mode) {
            // Somebody else made it just now.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(error, &real)),
        }
        folder = Found::directory(&real)?;
    }
    Ok(())
}

pub(crate) fn stat_in(folder: impl AsFd, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Opens a directory in a directory, never through a symlink, and looks whether it is of another
/// file system that is off limits.
pub(crate) fn enter(folder: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

pub(crate) fn check_disk(fd: impl AsFd) -> Outcome<()> {
    let own = fstatfs(fd).is_ok_and(|disk| {
        #[allow(clippy::unnecessary_cast, reason = "its type differs between platforms")]
        let kind = disk.filesystem_type().0 as i64;
        KERNELS_OWN.contains(&kind)
    });
    if own { Err(kohakuriver_agent_protocol::files::PathError::Forbidden.into()) } else { Ok(()) }
}

pub(crate) fn kind_of(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// The path by which this process can name what it has open.
pub(crate) fn handle(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn open_path(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | flags;
    // Links such as /proc/self/root lead out of what a path says; no file needs one.
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(AT_FDCWD, path, how) {
        // An old kernel, or a container whose rules do not know the call: the look at what was
        // opened is what protects, and comes in any case.
        Err(Errno::ENOSYS | Errno::EPERM) => openat(AT_FDCWD, path, flags, Mode::empty()),
        result => result,
    }
}
