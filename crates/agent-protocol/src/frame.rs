//! Frames: one byte of kind, four bytes of length (big endian), the payload.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload either side accepts: a command line with a large environment.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
const HEADER: usize = 5;
/// How much is asked of the stream at once, when there is no reason to ask for more.
const READ: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the stream failed")]
    Io(#[from] std::io::Error),
    #[error("the stream ended in the middle of a message")]
    Cut,
    #[error("the other side announced a message of {0} bytes; at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
    #[error("a message of {0} bytes cannot be sent; at most {MAX_PAYLOAD} are allowed")]
    Oversized(usize),
    #[error("the other side sent something that is not part of the protocol: kind {0}")]
    Unknown(u8),
    #[error("the other side sent something that is not part of the protocol")]
    Malformed(#[from] serde_json::Error),
    #[error("the other side sent a message of the wrong length")]
    WrongLength,
}

impl From<FrameError> for std::io::Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error,
            FrameError::Oversized(_) => Self::new(std::io::ErrorKind::InvalidInput, error),
            FrameError::Cut
            | FrameError::TooLong(_)
            | FrameError::Unknown(_)
            | FrameError::Malformed(_)
            | FrameError::WrongLength => Self::new(std::io::ErrorKind::InvalidData, error),
        }
    }
}

/// A message of one direction of a framed protocol.
pub trait Message: Sized {
    /// Appends the message as a frame. Data is split by the code that makes it.
    ///
    /// # Errors
    /// The payload is larger than [`MAX_PAYLOAD`], which the reader would refuse. Nothing was
    /// appended.
    fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError>;

    /// # Errors
    /// The kind is unknown or the payload does not belong to it.
    fn decode(kind: u8, payload: Bytes) -> Result<Self, FrameError>;
}

pub(crate) fn put(out: &mut BytesMut, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
    let length = length.ok_or(FrameError::Oversized(payload.len()))?;
    out.reserve(HEADER + payload.len());
    out.put_u8(kind);
    out.put_u32(length);
    out.put_slice(payload);
    Ok(())
}

pub(crate) fn put_json<T: Serialize>(
    out: &mut BytesMut,
    kind: u8,
    value: &T,
) -> Result<(), FrameError> {
    put(out, kind, &serde_json::to_vec(value)?)
}

pub(crate) fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(payload)?)
}

/// Takes one whole message off the front of `buffer`, if one is there.
///
/// # Errors
/// The bytes are not of this protocol, so the rest of the stream cannot be decoded either.
pub fn take<M: Message>(buffer: &mut BytesMut) -> Result<Option<M>, FrameError> {
    let Some((header, _)) = buffer.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let (kind, mut length) = (header[0], &header[1..]);
    let length = length.get_u32() as usize;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    M::decode(kind, buffer.split_to(length).freeze()).map(Some)
}

/// Returns how many bytes the message at the front of `buffer` still lacks, as far as known.
pub fn missing(buffer: &[u8]) -> usize {
    match buffer.split_at_checked(HEADER) {
        Some((header, payload)) => {
            let length = (&header[1..]).get_u32() as usize;
            length.min(MAX_PAYLOAD).saturating_sub(payload.len())
        }
        None => HEADER - buffer.len(),
    }
}

/// Decodes all messages of `bytes`, for tests and fuzzing; a truncated last one is left out.
///
/// # Errors
/// As for a message that cannot be taken.
pub fn decode_all<M: Message>(bytes: &[u8]) -> Result<Vec<M>, FrameError> {
    let mut buffer = BytesMut::from(bytes);
    std::iter::from_fn(|| take(&mut buffer).transpose()).collect()
}

/// Writes one message and sends it off.
///
/// # Errors
/// The stream's own, or [`io::ErrorKind::InvalidInput`](std::io::ErrorKind::InvalidInput) for a
/// message that is too long; nothing of that one was written.
pub async fn write<W: AsyncWrite + Unpin, M: Message>(
    stream: &mut W,
    message: &M,
) -> std::io::Result<()> {
    let mut frame = BytesMut::new();
    message.encode(&mut frame)?;
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// How long the peer may keep sending after the last message.
const LINGER: Duration = Duration::from_secs(2);

/// Sends the last message and closes the stream so that it arrives: closing a connection with
/// unread input resets it, and the last bytes sent are lost with it.
pub async fn finish<R, W, I, O>(reader: &mut FrameReader<R, I>, writer: &mut W, last: &O)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    I: Message,
    O: Message,
{
    if write(writer, last).await.is_err() || writer.shutdown().await.is_err() {
        return;
    }
    let drained = async { while let Ok(Some(_)) = reader.next().await {} };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// Reads messages off a stream.
#[derive(Debug)]
pub struct FrameReader<R, M> {
    stream: R,
    buffer: BytesMut,
    message: PhantomData<fn() -> M>,
}

impl<R: AsyncRead + Unpin, M: Message> FrameReader<R, M> {
    /// `early` is what was read of the stream before.
    pub fn new(stream: R, early: &[u8]) -> Self {
        Self { stream, buffer: BytesMut::from(early), message: PhantomData }
    }

    /// Returns the next message, or `None` if the stream ends between two. Cancel safe: dropping
    /// the future loses no bytes.
    ///
    /// # Errors
    /// The stream failed, or its bytes are not of this protocol.
    pub async fn next(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if let Some(message) = take(&mut self.buffer)? {
                return Ok(Some(message));
            }
            let missing = missing(&self.buffer);
            if self.buffer.capacity() - self.buffer.len() < missing.max(READ / 4) {
                self.buffer.reserve(missing.max(READ));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Cut) };
            }
        }
    }
}
