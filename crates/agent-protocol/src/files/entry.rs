use serde::{Deserialize, Serialize};

use super::Word;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// Devices, sockets, pipes, and kinds of newer agents.
    #[serde(other)]
    Other,
}

/// Seconds since 1970 and the nanoseconds on top of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(pub i64, pub u32);

/// A file and its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In a directory; of a walk, the way from where it began; otherwise its real path.
    pub name: Word,
    pub kind: Kind,
    pub size: u64,
    /// The permission bits, without the kind.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// The target of a symlink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Word>,
    /// The owner's name, where it was asked for alone and has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// The partial file of an interrupted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    pub size: u64,
    /// The modification time of its source.
    pub mtime: Time,
}

/// `rwxr-xr-x`, with the special bits as `ls` shows them.
pub fn permissions(mode: u32) -> String {
    let bit = |mask: u32, letter: char| if mode & mask == 0 { '-' } else { letter };
    let special = |mask: u32, execute: u32, both: char| match (mode & mask, mode & execute) {
        (0, _) => bit(execute, 'x'),
        (_, 0) => both.to_ascii_uppercase(),
        _ => both,
    };
    [
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o4000, 0o100, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o2000, 0o010, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o1000, 0o001, 't'),
    ]
    .iter()
    .collect()
}
