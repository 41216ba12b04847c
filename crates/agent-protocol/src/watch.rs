//! Change events below some directories.
//!
//! ```text
//!  client                       agent
//!    Start {paths}     ---->             once, first
//!                      <----  Watching {paths, method}
//!                      <----  Change, Lost
//!                      <----  Failed, and the end of the stream
//! ```
//!
//! The client ends it by closing the stream. Events are debounced; a client that is slower than
//! the changes receives `Lost` and must read the directories again.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::exec::Word;
use crate::files::Failed;
use crate::frame::{FrameError, Message, json, put, put_json};

/// The most directories one stream may name.
pub const MAX_PATHS: usize = 64;

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchInput {
    Start { paths: Vec<Word> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Inotify,
    /// Repeated scans, where there are more directories than the kernel can watch.
    Polling,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    pub paths: Vec<Word>,
    pub method: Method,
    /// Of polling, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Event {
    Create,
    Modify,
    Delete,
    Move,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub event: Event,
    pub path: Word,
    pub is_dir: bool,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutput {
    Watching(Watching),
    Change(Change),
    /// Some changes were dropped.
    Lost,
    Failed(Failed),
}

impl Message for WatchInput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Start { paths } => put_json(out, 1, paths),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        match kind {
            1 => Ok(Self::Start { paths: json(&payload)? }),
            other => Err(FrameError::Unknown(other)),
        }
    }
}

impl Message for WatchOutput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Watching(watching) => put_json(out, 1, watching),
            Self::Change(change) => put_json(out, 2, change),
            Self::Lost => put(out, 3, &[]),
            Self::Failed(failed) => put_json(out, 4, failed),
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Watching(json(&payload)?),
            2 => Self::Change(json(&payload)?),
            3 => Self::Lost,
            4 => Self::Failed(json(&payload)?),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}
