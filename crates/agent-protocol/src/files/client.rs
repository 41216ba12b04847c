//! The client's side of the files protocol. Sending and receiving are two halves, because a
//! client that sends requests ahead must read answers at the same time.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{Ask, CHUNK, Entry, Failed, FilesInput, FilesOutput, Probed};
use crate::frame::{FrameError, FrameReader, Message};

/// Small messages are collected up to here before they are sent.
const COLLECT: usize = 32 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stream goes on.
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error(transparent)]
    Stream(#[from] FrameError),
    #[error("the instance ended the connection")]
    Ended,
    #[error("the instance gave an answer to another question")]
    Unexpected,
    /// Nothing after it is read.
    #[error("the instance sent more than was asked")]
    TooMuch,
}

impl From<std::io::Error> for ClientError {
    fn from(error: std::io::Error) -> Self {
        Self::Stream(error.into())
    }
}

/// Both halves of a stream.
pub fn split<S: AsyncRead + AsyncWrite>(stream: S) -> (Orders<WriteHalf<S>>, Answers<ReadHalf<S>>) {
    let (read, write) = tokio::io::split(stream);
    (Orders { stream: write, pending: BytesMut::new() }, Answers::new(read))
}

/// Sends requests. Small messages are buffered until more arrive or until [`Orders::flush`].
#[derive(Debug)]
pub struct Orders<W> {
    stream: W,
    pending: BytesMut,
}

impl<W: AsyncWrite + Unpin> Orders<W> {
    /// # Errors
    /// The stream's own.
    pub async fn ask(&mut self, ask: Ask) -> std::io::Result<()> {
        self.send(&FilesInput::Ask(ask)).await
    }

    /// # Errors
    /// The stream's own.
    pub async fn send(&mut self, message: &FilesInput) -> std::io::Result<()> {
        message.encode(&mut self.pending)?;
        if self.pending.len() < COLLECT { Ok(()) } else { self.flush().await }
    }

    /// Part of a file, split as the other side wants it.
    ///
    /// # Errors
    /// The stream's own.
    pub async fn data(&mut self, mut data: Bytes) -> std::io::Result<()> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            if self.pending.len() + chunk.len() < COLLECT {
                FilesInput::Data(chunk).encode(&mut self.pending)?;
                continue;
            }
            // Large ones are not copied: their head goes out with what waits, then they follow.
            self.pending.put_u8(2);
            self.pending.put_u32(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            self.flush().await?;
            self.stream.write_all(&chunk).await?;
        }
        Ok(())
    }

    /// # Errors
    /// The stream's own.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.pending).await?;
        self.pending.clear();
        self.stream.flush().await
    }

    /// # Errors
    /// The stream's own.
    pub async fn shutdown(&mut self) -> std::io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }
}

/// Receives answers, in the order of the requests.
#[derive(Debug)]
pub struct Answers<R> {
    frames: FrameReader<R, FilesOutput>,
}

impl<R: AsyncRead + Unpin> Answers<R> {
    pub fn new(stream: R) -> Self {
        Self { frames: FrameReader::new(stream, &[]) }
    }

    /// Returns the next message. Cancel safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// The stream ended, its bytes are not of this protocol, or the answer is a failure.
    pub async fn next(&mut self) -> Result<FilesOutput, ClientError> {
        match self.frames.next().await? {
            Some(FilesOutput::Failed(failed)) => Err(failed.into()),
            Some(output) => Ok(output),
            None => Err(ClientError::Ended),
        }
    }
}

/// Conversions to the expected kind of answer. Any other kind is [`ClientError::Unexpected`].
impl FilesOutput {
    /// # Errors
    /// It is something else.
    pub fn done(self) -> Result<(), ClientError> {
        let Self::Done { .. } = self else { return Err(ClientError::Unexpected) };
        Ok(())
    }

    /// # Errors
    /// It is something else.
    pub fn found(self) -> Result<Entry, ClientError> {
        let Self::Found(entry) = self else { return Err(ClientError::Unexpected) };
        Ok(entry)
    }

    /// # Errors
    /// It is something else.
    pub fn probed(self) -> Result<Probed, ClientError> {
        let Self::Probed(probed) = self else { return Err(ClientError::Unexpected) };
        Ok(probed)
    }

    /// # Errors
    /// It is something else.
    pub fn written(self) -> Result<u64, ClientError> {
        let Self::Written { size } = self else { return Err(ClientError::Unexpected) };
        Ok(size)
    }

    /// Returns the next chunk of a file that is read, `None` at its end.
    ///
    /// # Errors
    /// It is something else.
    pub fn piece(self) -> Result<Option<Bytes>, ClientError> {
        if let Self::Data(data) = self { Ok(Some(data)) } else { self.done().map(|()| None) }
    }
}
