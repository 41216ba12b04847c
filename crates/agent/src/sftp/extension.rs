//! OpenSSH's additions to the protocol, as far as they need more than one call.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use nix::sys::statvfs::{FsFlags, Statvfs};

use super::files::{MAX_HANDLES, real_path};
use super::names::Names;
use super::origin::Origin;
use super::output::{Body, Code, MAX_DATA, Output, Refusal};
use super::request::Reader;
use super::serve::MAX_PACKET;
use crate::passwd;

/// Told to every client, each with its version.
pub(super) const OFFERED: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// Writes the limits of packets, reads, writes and open handles.
pub(super) fn limits(body: &mut Body<'_>) {
    for limit in [MAX_PACKET, MAX_DATA, MAX_DATA, MAX_HANDLES] {
        body.u64(limit as u64);
    }
}

pub(super) fn file_system(body: &mut Body<'_>, facts: &Statvfs) {
    let mut flags = 0;
    for (flag, bit) in [(FsFlags::ST_RDONLY, 1), (FsFlags::ST_NOSUID, 2)] {
        if facts.flags().contains(flag) {
            flags |= bit;
        }
    }
    let numbers = [
        facts.block_size(),
        facts.fragment_size(),
        facts.blocks(),
        facts.blocks_free(),
        facts.blocks_available(),
        facts.files(),
        facts.files_free(),
        facts.files_available(),
        facts.filesystem_id(),
        flags,
        facts.name_max(),
    ];
    for number in numbers {
        body.u64(number);
    }
}

/// Where a user lives; the one we are, where none is named.
pub(super) fn home(origin: &Origin, user: &[u8]) -> Result<PathBuf, Refusal> {
    if user.is_empty() {
        return Ok(origin.home.clone());
    }
    std::str::from_utf8(user)
        .ok()
        .and_then(passwd::lookup)
        .map(|user| user.home)
        .ok_or_else(|| Refusal::new(Code::Failure, "No such user"))
}

/// Replaces `~` and `~user` at the start.
pub(super) fn expand(origin: &Origin, path: &[u8]) -> Result<PathBuf, Refusal> {
    let Some(rest) = path.strip_prefix(b"~") else {
        return Ok(real_path(&origin.at(path))?);
    };
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (user, inside) = rest.split_at(end);
    let inside = inside.iter().position(|byte| *byte != b'/').map_or(&[][..], |at| &inside[at..]);
    Ok(real_path(&home(origin, user)?.join(std::ffi::OsStr::from_bytes(inside)))?)
}

/// Names for lists of user and group ids, empty where there is none.
pub(super) fn names_by_id(
    output: &mut Output,
    id: u32,
    users: &[u8],
    groups: &[u8],
    names: &mut Names,
) {
    let put = |listed: &mut Vec<u8>, name: &str| {
        listed.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        listed.extend(name.as_bytes());
    };
    let (mut user_names, mut group_names) = (Vec::new(), Vec::new());
    let (mut users, mut groups) = (Reader(users), Reader(groups));
    while let Ok(id) = users.u32() {
        put(&mut user_names, names.user(id));
    }
    while let Ok(id) = groups.u32() {
        put(&mut group_names, names.group(id));
    }
    output.extended(id, |body| {
        body.string(&user_names).string(&group_names);
    });
}

/// Copies within the instance; a length of nothing means to the end.
pub(super) fn copy(
    from: &File,
    from_offset: u64,
    length: u64,
    to: &File,
    to_offset: u64,
) -> Result<(), Refusal> {
    let (source, target) = (from.metadata()?, to.metadata()?);
    if (source.dev(), source.ino()) == (target.dev(), target.ino()) {
        return Err(Refusal::new(Code::Failure, "Source and target are the same file"));
    }
    let mut left = if length == 0 { u64::MAX } else { length };
    let (mut from_offset, mut to_offset) = (from_offset, to_offset);
    let mut buffer = vec![0; MAX_DATA];
    while left > 0 {
        let part = usize::try_from(left).map_or(MAX_DATA, |left| left.min(MAX_DATA));
        let count = match from.read_at(&mut buffer[..part], from_offset) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        to.write_all_at(&buffer[..count], to_offset)?;
        let count = count as u64;
        (from_offset, to_offset) =
            (from_offset.saturating_add(count), to_offset.saturating_add(count));
        left -= count;
    }
    Ok(())
}
