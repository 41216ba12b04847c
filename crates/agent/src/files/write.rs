//! Writing a file: into a partial file beside it, which takes its name when it is whole.
//!
//! A name that is a mount point (`/etc/hosts` in a container, a single file that was mounted) cannot be
//! given to another file; there the whole content is copied into the file that is mounted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write as _};

use kohakuriver_agent_protocol::files::{
    Code, Failed, FilesInput, FilesOutput, MAX_NAME, Time, Write, partial_name,
};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, ftruncate, unlinkat};

use super::FilesChannel;
use super::channel::Broken;
use super::failure::{Outcome, failed, failed_io};
use super::look::source_of;
use super::place::{
    Found, ResolvedPath, check_disk, handle, kind_of, make_directories, path_of, stat_in,
};

/// The mode of a new file where the request has none.
const NEW_FILE: u32 = 0o644;
const NEW_DIRECTORY: Mode = Mode::from_bits_truncate(0o755);
/// Bounds the retries against a process that keeps creating and removing partial files.
const ATTEMPTS: u32 = 8;

pub(super) fn write(channel: &mut FilesChannel, order: Write) -> Result<(), Broken> {
    // Whatever is wrong is said at once, so that nobody sends ten gigabytes for nothing; what is
    // on its way is dropped.
    let mut writing = Partial::begin(order);
    if let Err(error) = &writing {
        channel.send(&FilesOutput::Failed(error.clone()))?;
        channel.flush()?;
    }
    loop {
        let message = match channel.next() {
            Ok(Some(message)) => message,
            broken => {
                if let Ok(partial) = writing {
                    partial.give_up(true);
                }
                return broken.and(Err(Broken::Gone));
            }
        };
        match (message, writing) {
            (FilesInput::Data(data), Ok(mut partial)) => {
                writing = match partial.add(&data) {
                    Ok(()) => Ok(partial),
                    Err(error) => {
                        partial.give_up(error.code != Code::DiskFull);
                        channel.send(&FilesOutput::Failed(error.clone()))?;
                        channel.flush()?;
                        Err(error)
                    }
                };
            }
            (FilesInput::Data(_), Err(error)) => writing = Err(error),
            (FilesInput::End, Ok(partial)) => {
                let answer = match partial.finish() {
                    Ok(size) => FilesOutput::Written { size },
                    Err(error) => FilesOutput::Failed(error),
                };
                return channel.send(&answer);
            }
            (FilesInput::Abort, Ok(partial)) => {
                partial.give_up(true);
                let message = "the client gave up".to_owned();
                return channel.send(&FilesOutput::Failed(Failed { code: Code::Aborted, message }));
            }
            (FilesInput::End | FilesInput::Abort, Err(_)) => return Ok(()),
            (FilesInput::Ask(_), writing) => {
                if let Ok(partial) = writing {
                    partial.give_up(true);
                }
                return Err(Broken::OutOfTurn);
            }
        }
    }
}

/// A file that is not whole yet.
struct Partial {
    order: Write,
    place: ResolvedPath,
    name: OsString,
    /// Locked, so that two writers of one file do not mix.
    file: Flock<File>,
    size: u64,
    /// The status of the existing target.
    replaced: Option<FileStat>,
}

impl Partial {
    fn begin(mut order: Write) -> Outcome<Self> {
        let path = path_of(order.path.clone())?;
        if order.create_parents
            && let Some(parent) = path.parent()
        {
            make_directories(parent, NEW_DIRECTORY)?;
        }
        let place = ResolvedPath::through_links(&path)?;
        let replaced = place.stat();
        match replaced.as_ref().map(kind_of) {
            None | Some(libc::S_IFREG) => {}
            Some(libc::S_IFDIR) => return Err(failed(Errno::EISDIR, &path)),
            Some(_) => {
                let message = format!("{} is a device, pipe or socket, not a file", path.display());
                return Err(Failed { code: Code::Invalid, message });
            }
        }
        let (file, name, own) = open_partial(&place)?;
        if !own {
            // Somebody else is writing the same file; whoever is done last wins.
            order.resumable = false;
        }
        let mut partial = Self { order, place, name, file, size: 0, replaced };
        match partial.position() {
            Ok(()) => Ok(partial),
            Err(error) => {
                // What another attempt has left may still be good for something.
                partial.give_up(error.code == Code::Stale);
                Err(error)
            }
        }
    }

    /// Goes on where an earlier attempt stopped, or begins.
    fn position(&mut self) -> Outcome<()> {
        let (offset, real) = (self.order.offset, self.place.real());
        if offset > 0 {
            let stat = fstat(&*self.file).map_err(|error| failed(error, &real))?;
            let there = u64::try_from(stat.st_size).unwrap_or(0);
            if there < offset || Some(source_of(&stat)) != self.order.mtime {
                let message = format!("the beginning of {} is gone", real.display());
                return Err(Failed { code: Code::Stale, message });
            }
        }
        let length = i64::try_from(offset).map_err(|_| failed(Errno::EFBIG, &real))?;
        ftruncate(&*self.file, length).map_err(|error| failed(error, &real))?;
        self.file.seek(SeekFrom::Start(offset)).map_err(|error| failed_io(&error, &real))?;
        self.size = offset;
        self.mark()
    }

    /// Notes what the content will be the beginning of: in the time of the last access, which
    /// writing leaves alone. Done while there is no other content, so it is right whenever we end.
    fn mark(&self) -> Outcome<()> {
        match self.order.mtime.filter(|_| self.order.resumable) {
            Some(mtime) => self.set_times(&spec(mtime), &TimeSpec::UTIME_OMIT),
            None => Ok(()),
        }
    }

    fn set_times(&self, access: &TimeSpec, change: &TimeSpec) -> Outcome<()> {
        futimens(&*self.file, access, change).map_err(|error| failed(error, &self.place.real()))
    }

    fn add(&mut self, data: &[u8]) -> Outcome<()> {
        let written = self.file.write_all(data);
        written.map_err(|error| failed_io(&error, &self.place.real()))?;
        self.size += data.len() as u64;
        Ok(())
    }

    fn finish(self) -> Outcome<u64> {
        match self.complete() {
            Ok(()) => Ok(self.size),
            Err(error) => {
                self.give_up(false);
                Err(error)
            }
        }
    }

    fn complete(&self) -> Outcome<()> {
        let (order, real) = (&self.order, self.place.real());
        let fail = |error| failed(error, &real);
        if let Some(size) = order.size.filter(|size| *size != self.size) {
            let message =
                format!("{} was announced with {size} bytes, not {}", real.display(), self.size);
            return Err(Failed { code: Code::Invalid, message });
        }
        let file = &*self.file;
        if let Some(old) = &self.replaced {
            // Not every disk knows owners.
            let _ = fchown(file, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)));
        }
        let old_mode = self.replaced.as_ref().map(|old| old.st_mode & 0o7777);
        let mode = order.mode.or(old_mode).unwrap_or(NEW_FILE);
        fchmod(file, Mode::from_bits_truncate(mode)).map_err(fail)?;
        if let Some(mtime) = order.mtime {
            self.set_times(&TimeSpec::UTIME_NOW, &spec(mtime))?;
        }
        if order.durable {
            file.sync_all().map_err(|error| failed_io(&error, &real))?;
        }
        let folder = &self.place.folder;
        let renamed = renameat(folder, self.name.as_os_str(), folder, self.place.name.as_os_str());
        if renamed == Err(Errno::EBUSY) {
            return self.write_in_place();
        }
        renamed.map_err(fail)?;
        if order.durable {
            sync_directory(folder)?;
        }
        Ok(())
    }

    /// Copies the content into the file that is at the target, which keeps its owner and mode.
    fn write_in_place(&self) -> Outcome<()> {
        let (order, real) = (&self.order, self.place.real());
        let fail = |error| failed(error, &real);
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let target = openat(&self.place.folder, self.place.name.as_os_str(), flags, Mode::empty())
            .map_err(fail)?;
        check_disk(&target)?;
        if kind_of(&fstat(&target).map_err(fail)?) != libc::S_IFREG {
            return Err(fail(Errno::EBUSY));
        }
        let mut target = File::from(target);
        let mut whole =
            File::open(handle(&*self.file)).map_err(|error| failed_io(&error, &real))?;
        // Not emptied first: a disk that is full, or a crash, leaves as much as possible.
        std::io::copy(&mut whole, &mut target)
            .and_then(|length| target.set_len(length))
            .map_err(|error| failed_io(&error, &real))?;
        if let Some(mode) = order.mode {
            fchmod(&target, Mode::from_bits_truncate(mode)).map_err(fail)?;
        }
        if let Some(mtime) = order.mtime {
            futimens(&target, &TimeSpec::UTIME_NOW, &spec(mtime)).map_err(fail)?;
        }
        if order.durable {
            target.sync_all().map_err(|error| failed_io(&error, &real))?;
        }
        remove(&self.place, &self.name).map_err(fail)
    }

    /// Leaves the beginning to the next attempt, if there may be one and it may have it.
    fn give_up(self, may_stay: bool) {
        let resumable = self.order.resumable && self.order.mtime.is_some();
        if !(may_stay && resumable) {
            let _ = unlinkat(&self.place.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn spec(Time(seconds, nanoseconds): Time) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}

pub(super) fn sync_directory(folder: &Found) -> Outcome<()> {
    folder.reopen_directory()?.sync_all().map_err(|error| failed_io(&error, &folder.real))
}

/// Opens and locks the partial file of a place. The flag tells whether it is the one that a later
/// attempt will look for.
fn open_partial(place: &ResolvedPath) -> Outcome<(Flock<File>, OsString, bool)> {
    let name = partial_name(&place.name);
    let fail = |error| failed(error, &place.real());
    for _ in 0..ATTEMPTS {
        let fd = match open(place, &name, OFlag::empty()) {
            Ok(file) => file,
            // A symlink, a pipe without a reader, somebody else's file in a shared directory.
            Err(Errno::ELOOP | Errno::ENXIO | Errno::EACCES) => {
                remove(place, &name).map_err(fail)?;
                continue;
            }
            Err(error) => return Err(fail(error)),
        };
        let stat = fstat(&fd).map_err(fail)?;
        // A file that has another name too, or another owner, was put there for us to write into.
        let plain = kind_of(&stat) == libc::S_IFREG && stat.st_nlink == 1;
        if !plain || stat.st_uid != Uid::effective().as_raw() {
            remove(place, &name).map_err(fail)?;
            continue;
        }
        let Ok(locked) = Flock::lock(fd, FlockArg::LockExclusiveNonblock) else {
            let other = other_name(&name);
            let file = open(place, &other, OFlag::O_EXCL).map_err(fail)?;
            let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            return locked.map(|locked| (locked, other, false)).map_err(|(_, error)| fail(error));
        };
        // Whoever had the lock before may have finished: then it is a whole file by now.
        let same = stat_in(&place.folder, &name)
            .is_ok_and(|now| (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino));
        if same {
            return Ok((locked, name, true));
        }
    }
    Err(fail(Errno::EAGAIN))
}

fn open(place: &ResolvedPath, name: &OsStr, more: OFlag) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mode = Mode::from_bits_truncate(0o600);
    openat(&place.folder, name, flags | OFlag::O_CLOEXEC | more, mode).map(File::from)
}

fn remove(place: &ResolvedPath, name: &OsStr) -> nix::Result<()> {
    match unlinkat(&place.folder, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// For a second writer, who cannot leave anything to a later attempt.
fn other_name(name: &OsStr) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    let end = format!("~{}", std::process::id());
    let room = MAX_NAME - end.len();
    let mut other = OsStr::from_bytes(&name.as_bytes()[..name.len().min(room)]).to_owned();
    other.push(end);
    other
}

/// For callers that write more than files.
pub(super) fn unused_name(place: &ResolvedPath) -> OsString {
    other_name(&partial_name(&place.name))
}
