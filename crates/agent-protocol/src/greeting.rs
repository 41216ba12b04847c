//! The two lines that open a connection between the runner and the agent.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::StreamTarget;

/// The longest line either side accepts, its newline included.
pub const MAX_LINE: usize = 4096;

/// The agent's answer to a [`StreamTarget`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawReply", into = "RawReply")]
pub enum StreamReply {
    /// The stream's own bytes follow.
    Ready,
    /// The answer to [`StreamTarget::Ping`].
    Pong { pid: u32, version: String },
    /// The stream is closed after this line.
    Refused { error: String },
}

#[derive(Clone, Serialize, Deserialize)]
struct RawReply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl From<StreamReply> for RawReply {
    fn from(reply: StreamReply) -> Self {
        let mut raw = Self { ok: true, error: None, pid: None, version: None };
        match reply {
            StreamReply::Ready => {}
            StreamReply::Pong { pid, version } => {
                raw.pid = Some(pid);
                raw.version = Some(version);
            }
            StreamReply::Refused { error } => {
                raw.ok = false;
                raw.error = Some(error);
            }
        }
        raw
    }
}

impl TryFrom<RawReply> for StreamReply {
    type Error = &'static str;

    fn try_from(raw: RawReply) -> Result<Self, Self::Error> {
        match (raw.ok, raw.error, raw.pid, raw.version) {
            (true, None, None, None) => Ok(Self::Ready),
            (true, None, Some(pid), Some(version)) => Ok(Self::Pong { pid, version }),
            (false, Some(error), None, None) => Ok(Self::Refused { error }),
            _ => Err("the reply's fields contradict each other"),
        }
    }
}

/// The reason that a line could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the agent connection failed")]
    Io(#[from] std::io::Error),
    #[error("the agent connection closed before a whole line")]
    Closed,
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("the line is not understood")]
    Malformed(#[from] serde_json::Error),
}

/// Sends a request; the runner's side.
pub async fn write_request<W: AsyncWrite + Unpin>(
    stream: &mut W,
    request: &StreamTarget,
) -> Result<(), WireError> {
    write_line(stream, request).await
}

/// Reads the agent's answer and not one byte more; the runner's side.
pub async fn read_reply<R: AsyncRead + Unpin>(stream: &mut R) -> Result<StreamReply, WireError> {
    Ok(serde_json::from_slice(&read_line(stream).await?)?)
}

/// Reads a request and not one byte more; the agent's side.
pub async fn read_request<R: AsyncRead + Unpin>(stream: &mut R) -> Result<StreamTarget, WireError> {
    Ok(serde_json::from_slice(&read_line(stream).await?)?)
}

/// Sends an answer; the agent's side.
pub async fn write_reply<W: AsyncWrite + Unpin>(
    stream: &mut W,
    reply: &StreamReply,
) -> Result<(), WireError> {
    write_line(stream, reply).await
}

async fn write_line<W: AsyncWrite + Unpin, T: Serialize>(
    stream: &mut W,
    value: &T,
) -> Result<(), WireError> {
    let mut line = serde_json::to_vec(value)?;
    if line.len() >= MAX_LINE {
        return Err(WireError::TooLong);
    }
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads up to the newline, byte by byte: what follows belongs to the stream and must stay in it.
async fn read_line<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Vec<u8>, WireError> {
    let mut line = Vec::with_capacity(64);
    let mut byte = [0u8];
    while line.len() < MAX_LINE {
        if stream.read(&mut byte).await? == 0 {
            return Err(WireError::Closed);
        }
        if byte[0] == b'\n' {
            return Ok(line);
        }
        line.push(byte[0]);
    }
    Err(WireError::TooLong)
}

#[cfg(test)]
#[path = "greeting_tests.rs"]
mod tests;
