//! Files of an instance: one request, one reply at a time.
//!
//! A root user in the instance may reply in the agent's place. So a collected reply is held to the
//! request: a longer one ends the stream ([`ClientError::TooMuch`]).

use kohakuriver_agent_protocol::files::{
    Answers, Ask, ClientError, Entry, FilesOutput, MAX_LIST, MAX_NAME, MAX_PATH, Orders, Word,
    split,
};
use kohakuriver_runner_link::protocol::StreamTarget;
use tokio::io::{ReadHalf, WriteHalf};

use crate::access::Caller;
use crate::host::App;
use crate::limits::{Bytes, HeldBytes, Holder};
use crate::sessions::open::{OpenSession, OpenSessionError, open_session};
use crate::sessions::registry::Guard;
use crate::sessions::streams::InstanceStream;

/// An open stream of file requests. Dropping it ends the request in progress.
#[derive(Debug)]
pub struct Files {
    pub orders: Orders<WriteHalf<InstanceStream>>,
    pub answers: Answers<ReadHalf<InstanceStream>>,
    /// The host memory that replies may take.
    memory: Bytes,
    _guard: Guard,
}

impl Files {
    /// Opens the files of the instance that `text` identifies.
    pub async fn open(app: &App, caller: &Caller, text: &str) -> Result<Self, OpenSessionError> {
        let OpenSession { stream, guard } =
            open_session(app, caller, text, StreamTarget::Files).await?;
        let (orders, answers) = split(stream);
        let memory = app.bodies.of(Holder::of(caller));
        Ok(Self { orders, answers, memory, _guard: guard })
    }

    /// Sends a request and returns the first message of the reply.
    pub async fn ask(&mut self, ask: Ask) -> Result<FilesOutput, ClientError> {
        self.orders.ask(ask).await?;
        self.orders.flush().await?;
        self.answers.next().await
    }

    /// Sends a request whose reply is a confirmation.
    pub async fn act(&mut self, ask: Ask) -> Result<(), ClientError> {
        self.ask(ask).await?.done()
    }

    /// Sends a request whose reply is, or begins with, a file's attributes.
    pub async fn find(&mut self, ask: Ask) -> Result<Entry, ClientError> {
        self.ask(ask).await?.found()
    }

    /// Lists entries, [`MAX_LIST`] at most; the flag is true where there are more.
    pub async fn list(&mut self, path: Word) -> Result<(Held<Vec<Entry>>, bool), ClientError> {
        let mut message = self.ask(Ask::List { path, limit: MAX_LIST }).await?;
        let mut entries = Held { value: Vec::new(), memory: Vec::new() };
        loop {
            if let FilesOutput::Done { more } = message {
                return Ok((entries, more));
            }
            let FilesOutput::Entries(some) = message else { return Err(ClientError::Unexpected) };
            let fits = entries.value.len() + some.len() <= MAX_LIST as usize;
            if some.is_empty() || !fits || !some.iter().all(is_real) {
                return Err(ClientError::TooMuch);
            }
            let bytes = some.iter().map(|entry| ENTRY + 2 * text(entry)).sum();
            entries.memory.push(self.memory.hold(bytes).await);
            entries.value.extend(some);
            message = self.answers.next().await?;
        }
    }

    /// Reads the first `limit` bytes of a file. Returns its length too.
    pub async fn read(
        &mut self,
        path: Word,
        limit: u64,
    ) -> Result<(Held<Vec<u8>>, u64), ClientError> {
        let ask = Ask::Read { path, offset: 0, limit: Some(limit) };
        let size = self.find(ask).await?.size;
        let most = usize::try_from(size.min(limit)).unwrap_or(usize::MAX);
        let memory = vec![self.memory.hold(most.saturating_mul(AS_JSON)).await];
        let mut value = Vec::new();
        while let Some(data) = self.answers.next().await?.piece()? {
            if data.is_empty() || value.len() + data.len() > most {
                return Err(ClientError::TooMuch);
            }
            value.extend_from_slice(&data);
        }
        Ok((Held { value, memory }, size))
    }
}

/// A value that counts as the caller's memory until it has been sent.
#[derive(Debug)]
pub struct Held<T> {
    pub value: T,
    pub memory: Vec<HeldBytes>,
}

/// Memory of an entry's attributes, here and as JSON.
const ENTRY: usize = 512;
/// Growth of a byte of a file: six of a JSON escape, beside itself.
const AS_JSON: usize = 7;

/// Returns the number of bytes of an entry's texts.
fn text(entry: &Entry) -> usize {
    let Entry { name, target, owner, .. } = entry;
    name.bytes() + target.as_ref().map_or(0, Word::bytes) + owner.as_ref().map_or(0, String::len)
}

/// Checks that a filesystem can have this entry.
fn is_real(entry: &Entry) -> bool {
    let Entry { name, target, owner, .. } = entry;
    name.bytes() <= MAX_NAME
        && target.as_ref().is_none_or(|target| target.bytes() <= MAX_PATH)
        && owner.as_ref().is_none_or(|owner| owner.len() <= MAX_NAME)
}
