//! Terminal sessions, which outlive the connections to them.
//!
//! ```text
//!  client                           agent
//!    Attach {session, size}    ---->         once, first (or List, or End)
//!                              <----  Attached {session, output, input}
//!                              <----  Output
//!    Input {position}, Resize  ---->
//!    Hangup                    ---->         the person's terminal is gone for good
//!                              <----  InputTaken {position}
//!                              <----  Ended | Failed, and the end of the stream
//! ```
//!
//! Both directions are counted from the session's (for input: the client's) first byte. A client
//! whose connection broke attaches again with where it stopped: it gets what it missed, or a
//! picture of the screen where that is no longer kept, and sends again what had not arrived. So
//! nothing typed is lost or typed twice.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::exec::{ExecExit, ExecFailed, Size};
use crate::frame::{FrameError, Message, json, put, put_json};

/// The longest name of a session, in bytes.
pub const MAX_NAME: usize = 64;
/// Bytes of the name of a user that a program may run as.
pub const MAX_USER: usize = 256;
/// Characters kept of what a program calls its window.
pub const MAX_TITLE: usize = 200;
/// Sessions of an instance, each of which holds a terminal and up to 3 MB of what it showed: a list of them, each at its bounds, fits a message.
pub const MOST_SESSIONS: usize = 64;
/// Input sent and not yet taken; a client keeps this much to send again.
pub const INPUT_WINDOW: usize = 256 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The session to take part in, made if there is none; without a name, a new one that gets
    /// the next free number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Attach only to an existing session: for reconnecting.
    #[serde(default)]
    pub existing: bool,
    #[serde(default)]
    pub read_only: bool,
    /// End the session when the last client of it is gone: for clients that cannot come back.
    #[serde(default)]
    pub ephemeral: bool,
    pub size: Size,
    #[serde(default)]
    pub term: String,
    /// Whom a new session runs as; root without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The client's own LANG and LC_*, for a new session, where the image has such a locale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locale: Vec<(String, String)>,
    /// A random number that identifies this client over all its connections.
    pub client: u64,
    /// Where in the session's output this client stopped, if it was here before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub session: String,
    /// The position of the next byte of [`SessionOutput::Output`]. What follows first may be a
    /// picture of the screen: it is sent as [`SessionOutput::Screen`] and not counted.
    pub output: u64,
    /// How much of this client's input has been taken.
    pub input: u64,
    /// Whether this made the session.
    pub created: bool,
}

/// A session, as people see it in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub name: String,
    pub user: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970 of the last output or input.
    pub active_at: u64,
    pub clients: u32,
    pub size: Size,
    /// The window title that the program set, or empty.
    #[serde(default)]
    pub title: String,
}

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionInput {
    Attach(Attach),
    /// `position` counts the bytes this client sent before these.
    Input {
        position: u64,
        data: Bytes,
    },
    Resize(Size),
    /// The session need not be kept for this client. One with a name stays.
    Hangup,
    /// Instead of an attach: answered with [`SessionOutput::List`].
    List,
    /// Instead of an attach: ends the named session, answered with [`SessionOutput::List`].
    End(String),
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    Attached(Attached),
    Output(Bytes),
    /// Bytes that make a terminal show the session's screen, whatever it showed before.
    Screen(Bytes),
    InputTaken(u64),
    Ended(ExecExit),
    Failed(ExecFailed),
    List(Vec<SessionInfo>),
    /// The client fell behind what is kept: the position of the next byte of output. A screen
    /// follows.
    Skipped(u64),
}

impl Message for SessionInput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Attach(attach) => put_json(out, 1, attach),
            Self::Input { position, data } => {
                let mut payload = BytesMut::with_capacity(8 + data.len());
                payload.extend_from_slice(&position.to_be_bytes());
                payload.extend_from_slice(data);
                put(out, 2, &payload)
            }
            Self::Resize(size) => put(out, 3, &size.to_bytes()),
            Self::Hangup => put(out, 4, &[]),
            Self::List => put(out, 5, &[]),
            Self::End(name) => put(out, 6, name.as_bytes()),
        }
    }

    fn decode(kind: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Attach(json(&payload)?),
            2 => {
                let position = position(&mut payload)?;
                Self::Input { position, data: payload }
            }
            3 => Self::Resize(Size::from_bytes(&payload)?),
            4 => Self::Hangup,
            5 => Self::List,
            6 => Self::End(String::from_utf8_lossy(&payload).into_owned()),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

impl Message for SessionOutput {
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        match self {
            Self::Attached(attached) => put_json(out, 1, attached),
            Self::Output(data) => put(out, 2, data),
            Self::Screen(data) => put(out, 3, data),
            Self::InputTaken(position) => put(out, 4, &position.to_be_bytes()),
            Self::Ended(exit) => put_json(out, 5, exit),
            Self::Failed(failed) => put_json(out, 6, failed),
            Self::List(sessions) => put_json(out, 7, sessions),
            Self::Skipped(position) => put(out, 8, &position.to_be_bytes()),
        }
    }

    fn decode(kind: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Attached(json(&payload)?),
            2 => Self::Output(payload),
            3 => Self::Screen(payload),
            4 => Self::InputTaken(position(&mut payload)?),
            5 => Self::Ended(json(&payload)?),
            6 => Self::Failed(json(&payload)?),
            7 => Self::List(json(&payload)?),
            8 => Self::Skipped(position(&mut payload)?),
            other => return Err(FrameError::Unknown(other)),
        })
    }
}

fn position(payload: &mut Bytes) -> Result<u64, FrameError> {
    payload.try_get_u64().map_err(|_| FrameError::WrongLength)
}
