//! Files of an instance: requests one after another, each answered before the next.
//!
//! ```text
//!  client                              agent
//!    Ask(Read ..)           ---->
//!                           <----  Found(entry), Data .., Done
//!    Ask(Write ..), Data .., End  ->
//!                           <----  Written                after it is there under its name
//!    Ask(Walk ..)           ---->
//!                           <----  Entries, Missed .., Done
//!    any other Ask          ---->
//!                           <----  Found, Probed, Link, Done
//! ```
//!
//! A client may send requests ahead: answers come in the order of the requests. Such a client must
//! read answers while it sends, because the agent waits until each is taken. Every request may
//! also be answered with `Failed`, which ends its answer; what still comes of a failed write's
//! data is read and dropped, and the stream goes on. A client that stops in the middle of a write
//! sends `Abort` or disconnects.
//!
//! A write goes to a *partial file* beside its target ([`partial_name`]) and is renamed when it
//! is whole, so a reader sees the old content or the new and never half. A partial file of a
//! resumable write stays when the client goes away. Its time of last access is the modification time
//! of what it is made of, by which the next attempt knows that it is the beginning of the same.

mod client;
mod entry;
mod path;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

pub use crate::exec::Word;
use crate::frame::{FrameError, Message, json, put, put_json};
pub use client::{Answers, ClientError, Orders, split};
pub use entry::{Entry, Kind, Partial, Time, permissions};
pub use path::{MAX_NAME, MAX_PATH, PathError, check_real, is_forbidden, normalise, partial_name};

/// The most entries of one `List`.
pub const MAX_LIST: u32 = 1000;
/// The most entries of one message.
pub const BATCH: usize = 256;
/// The most bytes of a file in one message that either side sends.
pub const CHUNK: usize = 256 * 1024;
/// How deep directories may lie in each other where a whole tree is gone through.
pub const MAX_DEPTH: usize = 512;

/// A request to the agent. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Ask {
    /// The first entries of a directory in the order of their names.
    List {
        path: Word,
        limit: u32,
    },
    Stat {
        path: Word,
        /// Of what a symlink leads to, not of the symlink.
        follow: bool,
    },
    /// The entry at a path, and the partial file of an interrupted write beside it. An absent path
    /// is a successful answer.
    Probe {
        path: Word,
    },
    /// Everything below a directory, itself first, each directory before what is in it. The
    /// entries' names are their ways from it.
    Walk {
        path: Word,
    },
    Read {
        path: Word,
        #[serde(default)]
        offset: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    /// `Data` and `End` or `Abort` follow.
    Write(Write),
    Mkdir {
        path: Word,
        /// Also make what is missing above it, and be content where it is there already.
        #[serde(default)]
        parents: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    Rename {
        from: Word,
        to: Word,
        overwrite: bool,
    },
    /// Deleting an absent path succeeds.
    Delete {
        path: Word,
        recursive: bool,
    },
    /// Replaces an existing entry unless it is a directory.
    Symlink {
        path: Word,
        target: Word,
    },
    ReadLink {
        path: Word,
    },
    /// Returns when everything written is on disk.
    Sync {
        path: Word,
    },
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub path: Word,
    /// Go on with the partial file that has this many bytes.
    #[serde(default)]
    pub offset: u64,
    /// Without it, that of the file that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<Time>,
    /// How long the whole file must be in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default)]
    pub create_parents: bool,
    /// Keep the partial file when the client goes away. Needs `mtime`.
    #[serde(default)]
    pub resumable: bool,
    /// Answer when it is on disk. Without it, a [`Ask::Sync`] makes many files durable at once.
    #[serde(default)]
    pub durable: bool,
}

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesInput {
    Ask(Ask),
    Data(Bytes),
    End,
    /// The write cannot be finished.
    Abort,
}

/// The machine-readable reason of a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    NotFound,
    /// The instance's own rules: a read-only disk, an immutable file.
    Denied,
    Exists,
    IsDirectory,
    NotDirectory,
    /// `/proc`, `/sys`, `/dev`, by whatever way.
    Forbidden,
    DiskFull,
    TooLarge,
    Invalid,
    /// The partial file is not what the client takes it for: it should begin again.
    Stale,
    Aborted,
    /// Any other error of the kernel, and codes of newer agents.
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    pub code: Code,
    /// A human-readable line.
    pub message: String,
}

/// An entry that a walk could not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    pub name: Word,
    pub failed: Failed,
}

/// The result of [`Ask::Probe`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<Partial>,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesOutput {
    /// The answer's end, where it has no other. `true`: there is more than was asked for.
    Done {
        more: bool,
    },
    Failed(Failed),
    Found(Entry),
    Probed(Probed),
    Entries(Vec<Entry>),
    Missed(Missed),
    Data(Bytes),
    /// The whole file's length.
    Written {
        size: u64,
    },
    Link(Word),
}

impl Message for FilesInput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Ask(ask) => put_json(out, 1, ask),
            Self::Data(data) => put(out, 2, data),
            Self::End => put(out, 3, &[]),
            Self::Abort => put(out, 4, &[]),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Ask(json(&payload)?),
            2 => Self::Data(payload),
            3 => Self::End,
            4 => Self::Abort,
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

impl Message for FilesOutput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Done { more } => put(out, 1, &[u8::from(*more)]),
            Self::Failed(failed) => put_json(out, 2, failed),
            Self::Found(entry) => put_json(out, 3, entry),
            Self::Probed(probed) => put_json(out, 4, probed),
            Self::Entries(entries) => put_json(out, 5, entries),
            Self::Missed(missed) => put_json(out, 6, missed),
            Self::Data(data) => put(out, 7, data),
            Self::Written { size } => put(out, 8, &size.to_be_bytes()),
            Self::Link(target) => put_json(out, 9, target),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => match payload[..] {
                [more] => Self::Done { more: more != 0 },
                _ => return Err(FrameError::WrongLength),
            },
            2 => Self::Failed(json(&payload)?),
            3 => Self::Found(json(&payload)?),
            4 => Self::Probed(json(&payload)?),
            5 => Self::Entries(json(&payload)?),
            6 => Self::Missed(json(&payload)?),
            7 => Self::Data(payload),
            8 => match payload[..].try_into() {
                Ok(size) => Self::Written { size: u64::from_be_bytes(size) },
                Err(_) => return Err(FrameError::WrongLength),
            },
            9 => Self::Link(json(&payload)?),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}
