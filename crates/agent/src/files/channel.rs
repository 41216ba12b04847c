//! Messages on standard input and output, one thread, no runtime.

use std::io;
use std::marker::PhantomData;

use bytes::{BufMut, BytesMut};
use kohakuriver_agent_protocol::files::{CHUNK, Code, Failed};
use kohakuriver_agent_protocol::{FrameError, Message, missing, take};
use nix::errno::Errno;

/// How much is asked of the socket at once, when there is no reason to ask for more.
const READ: usize = 64 * 1024;
/// Answers are collected up to here, or until there is nothing more to answer.
const COLLECT: usize = 64 * 1024;

/// Why the stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message came where another one belongs")]
    OutOfTurn,
    /// The client went away in the middle of something.
    #[error("the client went away")]
    Gone,
}

impl From<Errno> for Broken {
    fn from(error: Errno) -> Self {
        if matches!(error, Errno::EPIPE | Errno::ECONNRESET) {
            return Self::Gone;
        }
        Self::Frame(FrameError::Io(error.into()))
    }
}

/// Returns the process's result: a client that disconnects is no error.
pub(crate) fn ended(result: Result<(), Broken>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Broken::Gone | Broken::Frame(FrameError::Cut)) => Ok(()),
        Err(Broken::Frame(FrameError::Io(error))) => Err(error),
        Err(broken @ (Broken::Frame(_) | Broken::OutOfTurn)) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, broken.to_string()))
        }
    }
}

impl Broken {
    /// For the client, where it is one that said what cannot be understood.
    pub fn told(&self) -> Option<Failed> {
        match self {
            Self::Frame(FrameError::Io(_) | FrameError::Cut) | Self::Gone => None,
            Self::Frame(_) | Self::OutOfTurn => {
                Some(Failed { code: Code::Invalid, message: self.to_string() })
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Channel<In, Out> {
    input: BytesMut,
    output: BytesMut,
    messages: PhantomData<fn(Out) -> In>,
}

impl<In, Out> Default for Channel<In, Out> {
    fn default() -> Self {
        Self { input: BytesMut::new(), output: BytesMut::new(), messages: PhantomData }
    }
}

impl<In: Message, Out: Message> Channel<In, Out> {
    /// The next message, or `None` when the client is done. What was answered before is sent
    /// before it is waited for.
    pub fn next(&mut self) -> Result<Option<In>, Broken> {
        loop {
            if let Some(message) = take(&mut self.input)? {
                return Ok(Some(message));
            }
            self.flush()?;
            let (had, want) = (self.input.len(), missing(&self.input).max(READ));
            self.input.resize(had + want, 0);
            let count = loop {
                match nix::unistd::read(io::stdin(), &mut self.input[had..]) {
                    Err(Errno::EINTR) => {}
                    other => break other,
                }
            };
            self.input.truncate(had + count.unwrap_or(0));
            match count? {
                0 if had == 0 => return Ok(None),
                0 => return Err(FrameError::Cut.into()),
                _ => {}
            }
        }
    }

    pub fn send(&mut self, message: &Out) -> Result<(), Broken> {
        message.encode(&mut self.output)?;
        if self.output.len() < COLLECT { Ok(()) } else { self.flush() }
    }

    /// Sends up to a chunk that `fill` puts into the buffer it is given. Returns how much that was.
    pub fn send_filled(
        &mut self,
        kind: u8,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Broken> {
        let head = self.output.len();
        self.output.put_u8(kind);
        self.output.put_u32(0);
        let start = self.output.len();
        self.output.resize(start + most.min(CHUNK), 0);
        let filled = fill(&mut self.output[start..]);
        let count = *filled.as_ref().unwrap_or(&0);
        self.output.truncate(if count == 0 { head } else { start + count });
        if count > 0 {
            let length = u32::try_from(count).unwrap_or(u32::MAX);
            self.output[head + 1..start].copy_from_slice(&length.to_be_bytes());
        }
        if self.output.len() >= COLLECT {
            self.flush()?;
        }
        Ok(filled)
    }

    pub fn flush(&mut self) -> Result<(), Broken> {
        let mut sent = 0;
        while sent < self.output.len() {
            #[expect(clippy::disallowed_methods, reason = "the channel, not a terminal")]
            match nix::unistd::write(io::stdout(), &self.output[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.output.clear();
                    return Err(error.into());
                }
            }
        }
        self.output.clear();
        Ok(())
    }
}
