//! Frames: a 4-byte big-endian length and a JSON text, at most 1 MiB.
//!
//! A message that does not fit is refused before a byte of it is sent: the stream stays whole, and
//! the sender decides what becomes of that one message. What each message may hold is bounded where
//! it is made (`kohakuriver_model::bounds`), so this is the last line and not the first.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Framed, FramedParts, LengthDelimitedCodec};

/// Above the largest message (an order with all its parts at their bounds), far below what could
/// hurt.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// For connections that carry no orders: data connections, and machines that want to join.
pub const MAX_SMALL_FRAME_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the peer closed the link")]
    Closed,
    #[error("reading or writing the link failed")]
    Io(#[source] std::io::Error),
    #[error("the peer sent a message that is not part of the protocol")]
    Malformed(#[source] serde_json::Error),
    /// Nothing was sent; the stream can carry other messages.
    #[error("a message of {bytes} bytes cannot be sent: at most {limit} fit")]
    TooLarge { bytes: usize, limit: usize },
}

/// The length of a message's text, for those that decide before they send.
pub fn encoded_len<T: Serialize>(message: &T) -> usize {
    // Structures of strings and numbers: there is nothing in them that JSON cannot say.
    serde_json::to_vec(message).map_or(usize::MAX, |text| text.len())
}

/// A byte stream that carries frames.
#[derive(Debug)]
pub struct FrameStream<S> {
    inner: Framed<S, LengthDelimitedCodec>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameStream<S> {
    pub fn new(stream: S) -> Self {
        Self::with_limit(stream, MAX_FRAME_BYTES)
    }

    /// Creates a stream that reads and sends frames of [`MAX_SMALL_FRAME_BYTES`] at most.
    pub fn small(stream: S) -> Self {
        Self::with_limit(stream, MAX_SMALL_FRAME_BYTES)
    }

    fn with_limit(stream: S, limit: usize) -> Self {
        let codec = LengthDelimitedCodec::builder().max_frame_length(limit).new_codec();
        Self { inner: Framed::new(stream, codec) }
    }

    /// # Errors
    /// [`FrameError::TooLarge`] leaves the stream as it was; every other one ends it.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let text = serde_json::to_vec(message).map_err(FrameError::Malformed)?;
        let limit = self.inner.codec().max_frame_length();
        if text.len() > limit {
            return Err(FrameError::TooLarge { bytes: text.len(), limit });
        }
        self.inner.send(Bytes::from(text)).await.map_err(FrameError::Io)
    }

    /// Cancel-safe: a partly received frame is kept for the next call.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, FrameError> {
        match self.inner.next().await {
            None => Err(FrameError::Closed),
            Some(Err(error)) => Err(FrameError::Io(error)),
            Some(Ok(frame)) => serde_json::from_slice(&frame).map_err(FrameError::Malformed),
        }
    }

    /// Gives the bare stream back, with bytes that were read past the last frame.
    pub fn into_parts(self) -> (S, Bytes) {
        let FramedParts { io, read_buf, .. } = self.inner.into_parts();
        // Nothing in it is no reason to keep its eight KiB for as long as the stream lives.
        let early = if read_buf.is_empty() { Bytes::new() } else { read_buf.freeze() };
        (io, early)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{ToHost, ToRunner};

    proptest! {
        #[test]
        fn bytes_from_a_stranger_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async move {
                let mut frames = FrameStream::new(tokio::io::join(&bytes[..], tokio::io::sink()));
                while frames.receive::<ToHost>().await.is_ok() {}
            });
        }
    }

    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_refused() {
        let (near, far) = tokio::io::duplex(64);
        let mut far = far;
        tokio::io::AsyncWriteExt::write_all(&mut far, &[0x7f, 0xff, 0xff, 0xff, b'{'])
            .await
            .unwrap();
        let error = FrameStream::new(near).receive::<ToRunner>().await.unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "{error:?}");
    }

    #[tokio::test]
    async fn oversized_message_leaves_the_stream_usable() {
        let (near, far) = tokio::io::duplex(4096);
        let mut sender = FrameStream::new(far);
        let reason = "x".repeat(MAX_FRAME_BYTES);
        let error = sender.send(&ToRunner::Refused { reason }).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error:?}");
        sender.send(&ToRunner::HeartbeatAck).await.unwrap();
        let received = FrameStream::new(near).receive::<ToRunner>().await.unwrap();
        assert_eq!(received, ToRunner::HeartbeatAck);
    }

    #[tokio::test]
    async fn bytes_after_the_last_frame_are_not_lost() {
        let (near, far) = tokio::io::duplex(4096);
        let mut sender = FrameStream::new(far);
        sender.send(&ToRunner::HeartbeatAck).await.unwrap();
        let (mut raw, _) = sender.into_parts();
        tokio::io::AsyncWriteExt::write_all(&mut raw, b"SSH-2.0-x").await.unwrap();
        drop(raw);
        let mut receiver = FrameStream::new(near);
        assert_eq!(receiver.receive::<ToRunner>().await.unwrap(), ToRunner::HeartbeatAck);
        let (mut io, early) = receiver.into_parts();
        let mut rest = early.to_vec();
        tokio::io::AsyncReadExt::read_to_end(&mut io, &mut rest).await.unwrap();
        assert_eq!(rest, b"SSH-2.0-x");
    }
}
