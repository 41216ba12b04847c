//! Lists and reads local files.

use std::fs::{File, Metadata, ReadDir, read_dir, read_link};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use kohakuriver_agent_protocol::files::{CHUNK, MAX_DEPTH};
use tokio::sync::mpsc::{Receiver, Sender};

use super::super::item::{Choice, Item, Part, What, is_partial};
use super::super::report::{Report, add};
use super::{mtime, sentence};
use crate::error::CommandError;

/// Lists a tree, each directory before its content. Follows a symlink only at the root.
pub fn list(root: &Path, report: &Report, items: &Sender<Item>) -> Result<(), CommandError> {
    let fail = |error| CommandError::request(sentence(root, &error));
    let meta = root.metadata().map_err(fail)?;
    let Some(item) = item_of(root, PathBuf::new(), &meta, report) else {
        return Ok(());
    };
    let mut levels: Vec<(ReadDir, PathBuf)> = Vec::new();
    if meta.is_dir() {
        levels.push((read_dir(root).map_err(fail)?, PathBuf::new()));
    }
    if items.blocking_send(item).is_err() {
        return Ok(());
    }
    while let Some((entries, way)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let below = match &entry {
            Ok(entry) => way.join(entry.file_name()),
            Err(_) => way.clone(),
        };
        let path = root.join(&below);
        if is_partial(&below) {
            continue;
        }
        let meta = match entry.and_then(|entry| entry.metadata()) {
            Ok(meta) => meta,
            // The entry was removed since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                report.fail(path.display().to_string(), sentence(&path, &error));
                continue;
            }
        };
        let Some(item) = item_of(&path, below.clone(), &meta, report) else {
            continue;
        };
        let is_directory = matches!(item.what, What::Directory);
        if items.blocking_send(item).is_err() {
            return Ok(());
        }
        if is_directory && levels.len() >= MAX_DEPTH {
            let shown = path.display().to_string();
            report.leave_out(shown.clone(), format!("{shown} is too deep, its content"));
        } else if is_directory {
            match read_dir(&path) {
                Ok(entries) => levels.push((entries, below)),
                Err(error) => report.fail(path.display().to_string(), sentence(&path, &error)),
            }
        }
    }
    Ok(())
}

fn item_of(path: &Path, way: PathBuf, meta: &Metadata, report: &Report) -> Option<Item> {
    let kind = meta.file_type();
    let what = if kind.is_file() {
        add(&report.total, meta.len());
        What::File { size: meta.len() }
    } else if kind.is_dir() {
        What::Directory
    } else if kind.is_symlink() {
        match read_link(path) {
            Ok(target) => What::Link { target },
            Err(error) => {
                report.fail(path.display().to_string(), sentence(path, &error));
                return None;
            }
        }
    } else {
        let shown = path.display().to_string();
        report.leave_out(shown.clone(), format!("{shown} is a device, pipe or socket"));
        return None;
    };
    Some(Item { way, what, mode: meta.mode() & 0o7777, mtime: mtime(meta) })
}

/// Reads the selected items.
pub fn read(
    root: &Path,
    report: &Report,
    choices: &mut Receiver<(Item, Choice)>,
    parts: &Sender<Part>,
) -> Result<(), CommandError> {
    while let Some((item, choice)) = choices.blocking_recv() {
        let offset = match choice {
            Choice::Skip => continue,
            Choice::Copy { offset } => offset,
        };
        let sent = match item.what {
            What::Directory => parts.blocking_send(Part::Directory(item)).is_ok(),
            What::Link { .. } => parts.blocking_send(Part::Link(item)).is_ok(),
            What::File { size } => {
                let path = item.under(root);
                match open(&path, item, size, offset) {
                    Ok((file, begin)) => send(&path, file, begin, parts),
                    Err(error) => {
                        report.fail(path.display().to_string(), sentence(&path, &error));
                        true
                    }
                }
            }
        };
        // The receiver ends early only with an error of its own.
        if !sent {
            break;
        }
    }
    Ok(())
}

fn open(path: &Path, mut item: Item, size: u64, offset: u64) -> io::Result<(File, Part)> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no longer a regular file"));
    }
    if (meta.len(), mtime(&meta)) == (size, item.mtime) {
        file.seek(SeekFrom::Start(offset))?;
        return Ok((file, Part::Begin { item, size, offset }));
    }
    // It changed since it was listed: a partial file of the older content is of no use.
    (item.mtime, item.mode) = (mtime(&meta), meta.mode() & 0o7777);
    Ok((file, Part::Begin { item, size: meta.len(), offset: 0 }))
}

/// Sends a file. Returns `false` if the receiver has closed.
fn send(path: &Path, mut file: File, begin: Part, parts: &Sender<Part>) -> bool {
    let mut left = match &begin {
        Part::Begin { size, offset, .. } => size - offset.min(size),
        Part::Directory(_) | Part::Link(_) | Part::Data(_) | Part::End | Part::Broken(_) => 0,
    };
    if parts.blocking_send(begin).is_err() {
        return false;
    }
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let mut buffer = vec![0; most];
        let broken = match file.read(&mut buffer) {
            Ok(0) => format!("{} became shorter while it was copied", path.display()),
            Ok(count) => {
                buffer.truncate(count);
                left -= count as u64;
                if parts.blocking_send(Part::Data(Bytes::from(buffer))).is_err() {
                    return false;
                }
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => sentence(path, &error),
        };
        return parts.blocking_send(Part::Broken(broken)).is_ok();
    }
    parts.blocking_send(Part::End).is_ok()
}
