//! Attributes and directory lines as SFTP clients expect them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use russh_sftp::protocol::{File, FileAttributes};

/// The attributes of a file. Not the library's conversion, which takes every device for a symbolic link.
pub(super) fn attributes(meta: &Metadata) -> FileAttributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    FileAttributes {
        size: Some(meta.size()),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        permissions: Some(meta.mode()),
        atime: Some(seconds(meta.atime())),
        mtime: Some(seconds(meta.mtime())),
        ..FileAttributes::default()
    }
}

/// A directory entry with its line for `ls -l`.
pub(super) fn entry(name: String, attributes: FileAttributes) -> File {
    let kind = match attributes.permissions.unwrap_or(0) & libc::S_IFMT {
        libc::S_IFDIR => "d",
        libc::S_IFLNK => "l",
        libc::S_IFCHR => "c",
        libc::S_IFBLK => "b",
        libc::S_IFIFO => "p",
        libc::S_IFSOCK => "s",
        _ => "-",
    };
    let mut file = File::new(name, attributes);
    file.longname.replace_range(0..1, kind);
    file
}
