//! Files of an instance as the host asks for them: one request, its answer.

use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_wire::files::{Answers, Ask, ClientError, Entry, FilesOutput, Orders, split};
use tokio::io::{ReadHalf, WriteHalf};

use crate::access::Caller;
use crate::enter::{EnterError, Entered, enter};
use crate::host::App;
use crate::presence::Guard;
use crate::streams::InstanceStream;

/// An open stream of requests for files. Dropping it ends what is going on.
#[derive(Debug)]
pub struct Files {
    pub orders: Orders<WriteHalf<InstanceStream>>,
    pub answers: Answers<ReadHalf<InstanceStream>>,
    _guard: Guard,
}

impl Files {
    /// Of the instance that `text` means.
    pub async fn open(app: &App, caller: &Caller, text: &str) -> Result<Self, EnterError> {
        let Entered { stream, guard } = enter(app, caller, text, StreamTarget::Files).await?;
        let (orders, answers) = split(stream);
        Ok(Self { orders, answers, _guard: guard })
    }

    /// Asks, and returns the first message of the answer.
    pub async fn ask(&mut self, ask: Ask) -> Result<FilesOutput, ClientError> {
        self.orders.ask(ask).await?;
        self.orders.flush().await?;
        self.answers.next().await
    }

    /// Asks for something whose answer is that it is done.
    pub async fn act(&mut self, ask: Ask) -> Result<(), ClientError> {
        self.ask(ask).await?.done()
    }

    /// Asks for something whose answer is a file's attributes, or begins with them.
    pub async fn find(&mut self, ask: Ask) -> Result<Entry, ClientError> {
        self.ask(ask).await?.found()
    }

    /// Asks for entries; the flag tells whether there are more.
    pub async fn list(&mut self, ask: Ask) -> Result<(Vec<Entry>, bool), ClientError> {
        let mut message = self.ask(ask).await?;
        let mut entries = Vec::new();
        loop {
            if let FilesOutput::Done { more } = message {
                return Ok((entries, more));
            }
            let FilesOutput::Entries(some) = message else { return Err(ClientError::Unexpected) };
            entries.extend(some);
            message = self.answers.next().await?;
        }
    }
}
