//! Reads entries, directories and trees.

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, ReadDir, read_dir};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kohakuriver_agent_protocol::files::{
    BATCH, CHUNK, Code, Entry, Failed, FilesOutput, Kind, MAX_DEPTH, MAX_LIST, Missed, Partial,
    Probed, Time, Word, is_forbidden, partial_name,
};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FileStat, fstat};

use super::channel::Broken;
use super::failure::{Outcome, failed, failed_io, is_gone};
use super::place::{Found, ResolvedPath, check_disk, enter, handle, kind_of, path_of, stat_in};
use super::{FilesChannel, channel};
use crate::passwd;

/// Of a batch, about; names can be long.
const BATCH_BYTES: usize = 64 * 1024;
/// The kind of [`FilesOutput::Data`].
const DATA: u8 = 7;

pub(super) fn stat(path: Word, follow: bool) -> Outcome<Entry> {
    let found = Found::open(&path_of(path)?, follow)?;
    let mut entry = entry(Word::from(found.real.as_os_str()), &found.stat);
    if entry.kind == Kind::Symlink {
        entry.target = readlinkat(&found, "").ok().map(|target| Word::from(target.as_os_str()));
    }
    entry.owner = passwd::name_of(found.stat.st_uid);
    Ok(entry)
}

pub(super) fn read_link(path: Word) -> Outcome<Word> {
    let path = path_of(path)?;
    let found = Found::open(&path, false)?;
    if kind_of(&found.stat) != libc::S_IFLNK {
        let message = format!("{} is not a symlink", path.display());
        return Err(Failed { code: Code::Invalid, message });
    }
    let target = readlinkat(&found, "").map_err(|error| failed(error, &path))?;
    Ok(Word::from(target.as_os_str()))
}

pub(super) fn probe(path: Word) -> Outcome<Probed> {
    let path = path_of(path)?;
    let nothing = Probed { entry: None, partial: None };
    let place = match ResolvedPath::of(&path) {
        Ok(place) => place,
        Err(error) if is_gone(&error) => return Ok(nothing),
        Err(error) => return Err(error),
    };
    let mut name = place.name.clone();
    let entry = place.stat().map(|stat| {
        let mut entry = entry(Word::from(place.real().as_os_str()), &stat);
        if entry.kind == Kind::Symlink {
            let target = readlinkat(&place.folder, place.name.as_os_str()).ok();
            entry.target = target.map(|target| Word::from(target.as_os_str()));
        }
        entry
    });
    // A write goes through a symlink, so what it left is beside the symlink's target.
    let mut folder = place.folder;
    if entry.as_ref().is_some_and(|entry| entry.kind == Kind::Symlink) {
        match ResolvedPath::through_links(&path) {
            Ok(end) => (folder, name) = (end.folder, end.name),
            Err(_) => return Ok(Probed { entry, partial: None }),
        }
    }
    let partial = stat_in(&folder, &partial_name(&name)).ok();
    let partial = partial.filter(|stat| kind_of(stat) == libc::S_IFREG);
    let partial = partial.map(|stat| Partial {
        size: stat.st_size.try_into().unwrap_or(0),
        mtime: source_of(&stat),
    });
    Ok(Probed { entry, partial })
}

pub(super) fn list(channel: &mut FilesChannel, path: Word, limit: u32) -> Result<(), Broken> {
    let limit = limit.min(MAX_LIST) as usize;
    let (folder, names, more) = match first_names(path, limit) {
        Ok(listed) => listed,
        Err(error) => return channel.send(&FilesOutput::Failed(error)),
    };
    let mut batch = Batch::default();
    for name in names {
        // What has gone since is as good as never seen.
        if let Ok(stat) = stat_in(&folder, &name) {
            batch.add(channel, entry_in(&folder, &name, Word::from(name.as_os_str()), &stat))?;
        }
    }
    batch.send(channel)?;
    channel.send(&FilesOutput::Done { more })
}

/// The first names of a directory in order, and whether there are more. Never holds more of them.
fn first_names(path: Word, limit: usize) -> Outcome<(File, Vec<OsString>, bool)> {
    let path = path_of(path)?;
    let found = Found::directory(&path)?;
    let folder = found.reopen_directory()?;
    let mut names = BinaryHeap::new();
    let mut more = false;
    for item in read_dir(handle(&folder)).map_err(|error| failed_io(&error, &path))? {
        let name = item.map_err(|error| failed_io(&error, &path))?.file_name();
        if is_forbidden(&found.real.join(&name)) {
            continue;
        }
        names.push(name);
        if names.len() > limit {
            names.pop();
            more = true;
        }
    }
    Ok((folder, names.into_sorted_vec(), more))
}

/// A directory of a walk.
struct Level {
    folder: OwnedFd,
    items: ReadDir,
    disk: u64,
    /// From where the walk began.
    way: PathBuf,
}

pub(super) fn walk(channel: &mut FilesChannel, path: Word) -> Result<(), Broken> {
    let found = match path_of(path).and_then(|path| Found::open(&path, true)) {
        Ok(found) => found,
        Err(error) => return channel.send(&FilesOutput::Failed(error)),
    };
    let mut batch = Batch::default();
    batch.add(channel, entry(Word::from(""), &found.stat))?;
    let mut levels = Vec::new();
    if found.is_directory() {
        match found.reopen_directory().and_then(|root| {
            Level::open(root.into(), PathBuf::new()).map_err(|error| failed(error, &found.real))
        }) {
            Ok(level) => levels.push(level),
            Err(error) => return channel.send(&FilesOutput::Failed(error)),
        }
    }
    while let Some(level) = levels.last_mut() {
        let Some(item) = level.items.next() else {
            levels.pop();
            continue;
        };
        let way = match &item {
            Ok(item) => level.way.join(item.file_name()),
            Err(_) => level.way.clone(),
        };
        let real = found.real.join(&way);
        if is_forbidden(&real) {
            continue;
        }
        let depth = levels.len();
        // The borrow ended with the length.
        let Some(level) = levels.last() else { break };
        match step(level, item, &way, &real, depth) {
            Ok(Step { entry, below }) => {
                batch.add(channel, entry)?;
                levels.extend(below);
            }
            // What has gone since is as good as never seen.
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                batch.send(channel)?;
                let missed = Missed { name: Word::from(way.as_os_str()), failed: error };
                channel.send(&FilesOutput::Missed(missed))?;
            }
        }
    }
    batch.send(channel)?;
    channel.send(&FilesOutput::Done { more: false })
}

struct Step {
    entry: Entry,
    below: Option<Level>,
}

fn step(
    level: &Level,
    item: io::Result<std::fs::DirEntry>,
    way: &Path,
    real: &Path,
    depth: usize,
) -> Outcome<Step> {
    let fail = |error| failed(error, real);
    let name = item.map_err(|error| failed_io(&error, real))?.file_name();
    let stat = stat_in(&level.folder, &name).map_err(fail)?;
    let entry = entry_in(&level.folder, &name, Word::from(way.as_os_str()), &stat);
    if kind_of(&stat) != libc::S_IFDIR {
        return Ok(Step { entry, below: None });
    }
    if depth >= MAX_DEPTH {
        let message = format!("{} is more than {MAX_DEPTH} directories deep", real.display());
        return Err(Failed { code: Code::TooLarge, message });
    }
    let folder = enter(&level.folder, &name).map_err(fail)?;
    if stat.st_dev != level.disk {
        check_disk(&folder)?;
    }
    let below = Level::open(folder, way.to_owned()).map_err(fail)?;
    Ok(Step { entry, below: Some(below) })
}

impl Level {
    fn open(folder: OwnedFd, way: PathBuf) -> nix::Result<Self> {
        let items = read_dir(handle(&folder))
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        let disk = fstat(&folder)?.st_dev;
        Ok(Self { folder, items, disk, way })
    }
}

/// Entries on their way, few enough for one message.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, channel: &mut FilesChannel, entry: Entry) -> Result<(), Broken> {
        let length = |word: &Word| match word {
            Word::Text(text) => text.len(),
            Word::Bytes(bytes) => 4 * bytes.len(),
        };
        self.bytes += length(&entry.name) + entry.target.as_ref().map_or(0, length);
        self.entries.push(entry);
        if self.entries.len() < BATCH && self.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.send(channel)
    }

    fn send(&mut self, channel: &mut FilesChannel) -> Result<(), Broken> {
        self.bytes = 0;
        if self.entries.is_empty() {
            return Ok(());
        }
        channel.send(&FilesOutput::Entries(std::mem::take(&mut self.entries)))
    }
}

pub(super) fn read(
    channel: &mut channel::Channel<kohakuriver_agent_protocol::files::FilesInput, FilesOutput>,
    path: Word,
    offset: u64,
    limit: Option<u64>,
) -> Result<(), Broken> {
    let (file, found) = match open_file(path) {
        Ok(opened) => opened,
        Err(error) => return channel.send(&FilesOutput::Failed(error)),
    };
    let head = entry(Word::from(found.real.as_os_str()), &found.stat);
    // What is appended meanwhile is not part of what was promised.
    let end = head.size.min(limit.map_or(u64::MAX, |limit| offset.saturating_add(limit)));
    channel.send(&FilesOutput::Found(head))?;
    let mut at = offset;
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        match channel.send_filled(DATA, most, |buffer| file.read_at(buffer, at))? {
            // It was cut short while it was read: the client sees that by counting.
            Ok(0) => break,
            Ok(count) => at += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return channel.send(&FilesOutput::Failed(failed_io(&error, &found.real)));
            }
        }
    }
    channel.send(&FilesOutput::Done { more: false })
}

fn open_file(path: Word) -> Outcome<(File, Found)> {
    let path = path_of(path)?;
    let found = Found::open(&path, true)?;
    match kind_of(&found.stat) {
        libc::S_IFREG => Ok((found.reopen()?, found)),
        libc::S_IFDIR => Err(failed(Errno::EISDIR, &path)),
        _ => {
            let message = format!("{} is a device, pipe or socket, not a file", path.display());
            Err(Failed { code: Code::Invalid, message })
        }
    }
}

fn entry_in(folder: impl std::os::fd::AsFd, name: &OsStr, shown: Word, stat: &FileStat) -> Entry {
    let mut entry = entry(shown, stat);
    if entry.kind == Kind::Symlink {
        let target = readlinkat(folder, name).ok();
        entry.target = target.map(|target| Word::from(target.as_os_str()));
    }
    entry
}

fn entry(name: Word, stat: &FileStat) -> Entry {
    Entry {
        name,
        kind: match kind_of(stat) {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            _ => Kind::Other,
        },
        size: stat.st_size.try_into().unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime_of(stat),
        target: None,
        owner: None,
    }
}

fn mtime_of(stat: &FileStat) -> Time {
    Time(stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or(0))
}

/// The modification time of what a partial file is the beginning of.
pub(super) fn source_of(stat: &FileStat) -> Time {
    Time(stat.st_atime, stat.st_atime_nsec.try_into().unwrap_or(0))
}
