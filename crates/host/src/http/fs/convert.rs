//! Converts the agent's data about files to the API's.

use std::ffi::OsString;

use kohakuriver_agent_protocol::files::{
    ClientError, Entry, Failed, Kind, Time, Word, normalise, permissions,
};
use kohakuriver_api::{FsEntry, FsStat};

use super::super::error::ApiError;
use crate::clock::iso;

/// Extensions of files that are not read as text.
const BINARY: [&str; 40] = [
    "7z", "a", "avi", "bin", "bmp", "bz2", "class", "db", "dll", "dylib", "exe", "flac", "gif",
    "gz", "ico", "iso", "jar", "jpeg", "jpg", "mkv", "mov", "mp3", "mp4", "npy", "npz", "o", "pdf",
    "pickle", "pkl", "png", "pt", "pyc", "rar", "so", "sqlite", "tar", "wav", "webp", "xz", "zip",
];

/// Normalizes a requested path. The agent checks it again.
pub fn normal(path: &str) -> Result<String, ApiError> {
    match normalise(path.as_ref()) {
        Ok(path) => Ok(path.to_string_lossy().into_owned()),
        Err(error) => Err(super::refused(ClientError::Failed(Failed::from(error)))),
    }
}

pub fn entry(folder: &str, entry: Entry) -> FsEntry {
    let (kind, size) = kind_and_size(&entry);
    let (mtime, rights) = (time(entry.mtime), permissions(entry.mode));
    let name = text(entry.name);
    let path = format!("{}/{name}", folder.trim_end_matches('/'));
    FsEntry { path, name, kind, size, mtime, permissions: rights }
}

pub fn stat(path: String, entry: &Entry) -> FsStat {
    let (kind, size) = kind_and_size(entry);
    let end = path.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase());
    FsStat {
        kind,
        size,
        mtime: time(entry.mtime),
        permissions: permissions(entry.mode),
        owner: entry.owner.clone().unwrap_or_else(|| entry.uid.to_string()),
        // The agent runs as root in its instance.
        is_readable: true,
        is_writable: true,
        is_binary: end.is_some_and(|end| BINARY.contains(&end.as_str())),
        path,
    }
}

pub fn text(word: Word) -> String {
    OsString::from(word).to_string_lossy().into_owned()
}

fn kind_and_size(entry: &Entry) -> (String, i64) {
    let (kind, size) = match entry.kind {
        Kind::File => ("file", i64::try_from(entry.size).unwrap_or(i64::MAX)),
        Kind::Directory => ("directory", -1),
        Kind::Symlink => ("symlink", -1),
        Kind::Other => ("other", -1),
    };
    (kind.to_owned(), size)
}

fn time(Time(seconds, nanoseconds): Time) -> String {
    iso(seconds.saturating_mul(1000).saturating_add(i64::from(nanoseconds / 1_000_000)))
}
