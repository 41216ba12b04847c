//! The local side of a copy: blocking work on its own threads.

mod read;
mod write;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kohakuriver_agent_protocol::files::{Partial, Time, partial_name};

pub use read::{list, read};
pub use write::write;

/// Returns the size and time of the file at `path`, and the partial file of an interrupted copy.
pub fn probe(path: &Path) -> (Option<(u64, Time)>, Option<Partial>) {
    let file = |path: &Path| path.symlink_metadata().ok().filter(Metadata::is_file);
    let there = file(path).map(|meta| (meta.len(), mtime(&meta)));
    let partial = path.file_name().map(|name| path.with_file_name(partial_name(name)));
    let partial = partial.and_then(|path| file(&path));
    (there, partial.map(|meta| Partial { size: meta.len(), mtime: source(&meta) }))
}

pub fn mtime(meta: &Metadata) -> Time {
    Time(meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))
}

/// Returns the modification time of a partial file's source, which its access time holds (see the
/// files protocol).
pub fn source(meta: &Metadata) -> Time {
    Time(meta.atime(), u32::try_from(meta.atime_nsec()).unwrap_or(0))
}

/// Formats an error as `path: reason`, without the error number.
pub fn sentence(path: &Path, error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
    format!("{}: {plain}", path.display())
}
