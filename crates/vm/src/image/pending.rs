//! An image that is being made: a hidden directory beside the finished ones, until it takes its
//! name.
//!
//! ```text
//!  .pending-N, locked --commit--> NAME
//!     |--dropped--> removed
//!     |--killed--> unlocked: the next one to begin removes it
//!  NAME, and a new one --exchange--> NAME is the new one, .pending-N the old: removed
//!          \--where the file system cannot (NFS): NAME --> .old-NAME, new --> NAME, .old-NAME removed;
//!             killed between the two: .old-NAME --> NAME by the next one to begin
//!  NAME --delete--> .pending-N, removed
//! ```
//!
//! Everything that changes names happens under the lock of the whole directory, which is held for
//! moments. A finished image is never written to: nodes hold links to its files.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kohakuriver_model::VmImageName;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::ImageError;

const PENDING: &str = ".pending-";
const OLD: &str = ".old-";
/// In a pending directory: locked for as long as somebody works there.
const LOCK: &str = ".lock";

/// A directory to work in, removed when it is dropped.
#[derive(Debug)]
pub struct Pending {
    parent: PathBuf,
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Pending {
    /// A new one inside `parent`, after what the killed have left there was cleaned away.
    pub fn begin(parent: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(parent).map_err(ImageError::io("make the directory", parent))?;
        let _turn = turn(parent)?;
        clean(parent);
        let dir = parent.join(format!("{PENDING}{:016x}", rand::random::<u64>()));
        fs::create_dir(&dir).map_err(ImageError::io("make the directory", &dir))?;
        let lock = open_lock(&dir.join(LOCK))?;
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { parent: parent.to_owned(), dir, _lock: lock }),
            Err((_, errno)) => Err(ImageError::io("lock", &dir)(errno.into())),
        }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives it its name: from here on it is an image. Its files have to be on the disk by now.
    pub fn commit(self, name: &VmImageName, replace: bool) -> Result<(), ImageError> {
        let target = self.parent.join(name.as_str());
        let failed = ImageError::io("put the image into", &target);
        let _turn = turn(&self.parent)?;
        if is_there(&target) && !replace {
            return Err(ImageError::Exists { name: name.clone() });
        }
        let _ = fs::remove_file(self.dir.join(LOCK));
        sync(&self.dir)
            .and_then(|()| put(&self.dir, &target, &self.parent.join(format!("{OLD}{name}"))))
            .and_then(|()| sync(&self.parent))
            .map_err(failed)
        // Dropped now: what stands at the hidden name, if anything does, is the old image.
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Takes a finished image away, in one step for whoever looks.
pub fn delete(parent: &Path, name: &VmImageName) -> Result<(), ImageError> {
    let target = parent.join(name.as_str());
    let hidden = parent.join(format!("{PENDING}{:016x}", rand::random::<u64>()));
    let _turn = turn(parent)?;
    clean(parent);
    fs::rename(&target, &hidden)
        .and_then(|()| sync(parent))
        .map_err(ImageError::io("delete", &target))?;
    remove(&hidden);
    Ok(())
}

/// The name that an image has for a moment while another takes its place, where the file system
/// cannot exchange two directories.
pub fn parked(parent: &Path, name: &VmImageName) -> PathBuf {
    parent.join(format!("{OLD}{name}"))
}

/// `new` becomes `target`; what was there is at `new` or `old` for a moment, or gone.
fn put(new: &Path, target: &Path, old: &Path) -> io::Result<()> {
    if !is_there(target) {
        return fs::rename(new, target);
    }
    match renameat2(AT_FDCWD, new, AT_FDCWD, target, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            fs::rename(target, old)?;
            if let Err(error) = fs::rename(new, target) {
                let _ = fs::rename(old, target);
                return Err(error);
            }
            remove(old);
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until nobody else changes names in `parent`.
fn turn(parent: &Path) -> Result<Flock<File>, ImageError> {
    let path = parent.join(LOCK);
    Flock::lock(open_lock(&path)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| ImageError::io("lock", &path)(errno.into()))
}

fn open_lock(path: &Path) -> Result<File, ImageError> {
    // flock(2) on NFS wants a descriptor that may write.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(ImageError::io("open", path))
}

/// Removes what the killed have left; the caller has its turn.
fn clean(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let path = entry.path();
        if starts_with(&name, PENDING) {
            let lock = OpenOptions::new().write(true).open(path.join(LOCK));
            let unused = match lock {
                Ok(lock) => Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok(),
                // Without a lock it is an old image, or one that was killed at its first step.
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if unused {
                remove(&path);
            }
        } else if let Some(image) = name.to_str().and_then(|name| name.strip_prefix(OLD)) {
            let target = parent.join(image);
            if is_there(&target) {
                remove(&path);
            } else if let Err(error) = fs::rename(&path, &target) {
                tracing::warn!(%error, image, "a VM image cannot be put back");
            }
        }
    }
}

fn starts_with(name: &OsStr, prefix: &str) -> bool {
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot remove a directory of VM images");
        }
        Ok(()) | Err(_) => {}
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> VmImageName {
        text.parse().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| name != LOCK)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pending = Pending::begin(dir.path()).unwrap();
        fs::write(pending.path("x"), b"1").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(pending);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_one_left_goes_and_what_a_living_one_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let living = Pending::begin(dir.path()).unwrap();
        for dead in ["with-lock", "at-its-first-step"] {
            fs::create_dir(dir.path().join(format!("{PENDING}{dead}"))).unwrap();
        }
        fs::write(dir.path().join(format!("{PENDING}with-lock/{LOCK}")), b"").unwrap();
        let second = Pending::begin(dir.path()).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        assert!(living.dir().is_dir() && second.dir().is_dir());
    }

    #[test]
    fn a_new_one_takes_the_place_of_an_old_one_only_when_told_to() {
        let dir = tempfile::tempdir().unwrap();
        for (content, replace, fine) in [("1", false, true), ("2", false, false), ("3", true, true)]
        {
            let pending = Pending::begin(dir.path()).unwrap();
            fs::write(pending.path("x"), content).unwrap();
            assert_eq!(pending.commit(&image("a"), replace).is_ok(), fine, "{content}");
        }
        assert_eq!(fs::read(dir.path().join("a/x")).unwrap(), b"3");
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(names(&dir.path().join("a")), ["x"]);
        delete(dir.path(), &image("a")).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn an_image_that_stood_aside_when_the_machine_died_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(parked(dir.path(), &image("a"))).unwrap();
        fs::create_dir(parked(dir.path(), &image("b"))).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        drop(Pending::begin(dir.path()).unwrap());
        assert_eq!(names(dir.path()), ["a", "b"]);
    }
}
