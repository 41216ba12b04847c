//! Changes to names: directories, renames, deletions, symlinks.

use std::ffi::{OsStr, OsString};
use std::fs::{ReadDir, read_dir};
use std::os::fd::{AsFd, OwnedFd};

use kohakuriver_agent_protocol::files::{Code, Failed, MAX_DEPTH, Word};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, syncfs, unlinkat};

use super::failure::{Outcome, failed, failed_io, is_gone};
use super::place::{
    Found, ResolvedPath, check_disk, enter, handle, kind_of, make_directories, path_of, stat_in,
};
use super::write::unused_name;

pub(super) fn mkdir(path: Word, parents: bool, mode: Option<u32>) -> Outcome<()> {
    let path = path_of(path)?;
    let mode = Mode::from_bits_truncate(mode.unwrap_or(0o755));
    if parents {
        return make_directories(&path, mode);
    }
    let place = ResolvedPath::of(&path)?;
    mkdirat(&place.folder, place.name.as_os_str(), mode).map_err(|error| failed(error, &path))
}

pub(super) fn rename(from: Word, to: Word, overwrite: bool) -> Outcome<()> {
    let (from, to) = (path_of(from)?, path_of(to)?);
    let (old, new) = (ResolvedPath::of(&from)?, ResolvedPath::of(&to)?);
    let (old_name, new_name) = (old.name.as_os_str(), new.name.as_os_str());
    // The kernel's own answer would not say which of the two is missing.
    if old.stat().is_none() {
        return Err(failed(Errno::ENOENT, &from));
    }
    let plain = || renameat(&old.folder, old_name, &new.folder, new_name);
    let result = if overwrite {
        plain()
    } else {
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(&old.folder, old_name, &new.folder, new_name, flags) {
            // A disk that cannot do it in one step.
            Err(Errno::EINVAL | Errno::ENOSYS) if new.stat().is_some() => Err(Errno::EEXIST),
            Err(Errno::EINVAL | Errno::ENOSYS) => plain(),
            other => other,
        }
    };
    result.map_err(|error| {
        if error == Errno::EINVAL {
            let message = format!("{} cannot be moved into itself", from.display());
            return Failed { code: Code::Invalid, message };
        }
        failed(error, &to)
    })
}

pub(super) fn delete(path: Word, recursive: bool) -> Outcome<()> {
    let path = path_of(path)?;
    let place = match ResolvedPath::of(&path) {
        Ok(place) => place,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(stat) = place.stat() else {
        return Ok(());
    };
    let fail = |error| failed(error, &path);
    if kind_of(&stat) != libc::S_IFDIR {
        return remove(&place.folder, &place.name, UnlinkatFlags::NoRemoveDir).map_err(fail);
    }
    if !recursive {
        let message = format!("{} is a directory: deleting it takes recursive", path.display());
        return Err(Failed { code: Code::IsDirectory, message });
    }
    empty(&place)?;
    remove(&place.folder, &place.name, UnlinkatFlags::RemoveDir).map_err(fail)
}

/// A directory whose content is being deleted.
struct Level {
    folder: OwnedFd,
    items: ReadDir,
    name: OsString,
}

fn level(parent: impl AsFd, name: OsString, shown: &ResolvedPath) -> Outcome<Level> {
    let fail = |error| failed(error, &shown.real());
    let folder = enter(parent, &name).map_err(fail)?;
    check_disk(&folder)?;
    let items = read_dir(handle(&folder)).map_err(|error| failed_io(&error, &shown.real()))?;
    Ok(Level { folder, items, name })
}

/// Removes all that is in a directory, from the bottom up. What is on another disk below it stays
/// and ends the work, because the kernel does not let go of a disk's root.
fn empty(place: &ResolvedPath) -> Outcome<()> {
    let mut levels = vec![level(&place.folder, place.name.clone(), place)?];
    while let Some(current) = levels.last_mut() {
        let Some(item) = current.items.next() else {
            let done = levels.pop();
            if let (Some(done), Some(parent)) = (done, levels.last()) {
                remove(&parent.folder, &done.name, UnlinkatFlags::RemoveDir)
                    .map_err(|error| failed(error, &place.real().join(&done.name)))?;
            }
            continue;
        };
        let name = item.map_err(|error| failed_io(&error, &place.real()))?.file_name();
        let stat = match stat_in(&current.folder, &name) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(failed(error, &place.real().join(&name))),
        };
        if kind_of(&stat) != libc::S_IFDIR {
            remove(&current.folder, &name, UnlinkatFlags::NoRemoveDir)
                .map_err(|error| failed(error, &place.real().join(&name)))?;
            continue;
        }
        let below = level(&current.folder, name, place)?;
        if levels.len() >= MAX_DEPTH {
            let message = format!("{} is too deep to delete", place.real().display());
            return Err(Failed { code: Code::TooLarge, message });
        }
        levels.push(below);
    }
    Ok(())
}

fn remove(folder: impl AsFd, name: &OsStr, flag: UnlinkatFlags) -> nix::Result<()> {
    match unlinkat(folder, name, flag) {
        // Somebody was faster.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn symlink(path: Word, target: Word) -> Outcome<()> {
    let path = path_of(path)?;
    let target = OsString::from(target);
    let place = ResolvedPath::of(&path)?;
    let fail = |error| failed(error, &path);
    match symlinkat(target.as_os_str(), &place.folder, place.name.as_os_str()) {
        Err(Errno::EEXIST) => {}
        other => return other.map_err(fail),
    }
    if place.stat().is_some_and(|stat| kind_of(&stat) == libc::S_IFDIR) {
        return Err(failed(Errno::EISDIR, &path));
    }
    let other = unused_name(&place);
    remove(&place.folder, &other, UnlinkatFlags::NoRemoveDir).map_err(fail)?;
    symlinkat(target.as_os_str(), &place.folder, other.as_os_str()).map_err(fail)?;
    renameat(&place.folder, other.as_os_str(), &place.folder, place.name.as_os_str()).map_err(
        |error| {
            let _ = remove(&place.folder, &other, UnlinkatFlags::NoRemoveDir);
            fail(error)
        },
    )
}

pub(super) fn sync(path: Word) -> Outcome<()> {
    let path = path_of(path)?;
    let found = Found::open(&path, true)?;
    // What else is there has no content of its own to sync through.
    if !matches!(kind_of(&found.stat), libc::S_IFREG | libc::S_IFDIR) {
        return Ok(());
    }
    let file = found.reopen()?;
    syncfs(&file).map_err(|error| failed(error, &path))
}
