//! Byte streams into instances, over data connections that runners dialled.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_link::frame::{FrameError, FrameStream};
use kohakuriver_link::protocol::{StreamOpen, StreamOpened, StreamTarget};
use kohakuriver_model::{NodeId, TaskId};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::access::{Authorized, Wish};
use crate::host::App;
use crate::links::{DataConnection, DataPool};

/// From asking the runner to the first byte; the agent inside has answered by then.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// An open way into an instance.
#[derive(Debug)]
pub struct InstanceStream {
    connection: DataConnection,
    /// Bytes the instance sent right behind its answer.
    early: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("node '{node}' is offline")]
    NodeOffline { node: String },
    #[error("node '{node}' could not open a connection for this: {reason}")]
    NoConnection { node: String, reason: String },
    #[error("the instance did not answer within {} s", OPEN_LIMIT.as_secs())]
    Slow,
    #[error("{0}")]
    Refused(String),
}

impl InstanceStream {
    /// Opens a stream to `target`. The proof says which instance, and that its owner agrees.
    pub async fn open(
        app: &App,
        access: &Authorized,
        node: (&NodeId, &str),
        target: StreamTarget,
    ) -> Result<Self, StreamError> {
        debug_assert_eq!(access.wish(), Wish::Enter);
        let deadline = Instant::now() + OPEN_LIMIT;
        let attempt = Self::open_on_any(app, access.task_id(), node, target);
        timeout_at(deadline, attempt).await.unwrap_or(Err(StreamError::Slow))
    }

    async fn open_on_any(
        app: &App,
        task_id: TaskId,
        (node, name): (&NodeId, &str),
        target: StreamTarget,
    ) -> Result<Self, StreamError> {
        let open = StreamOpen { task_id, target };
        loop {
            let connection = match app.links.take_data(node) {
                DataPool::Ready(connection) => *connection,
                DataPool::Wait(arrived) => {
                    arrived.notified().await;
                    continue;
                }
                DataPool::Failed(reason) => {
                    return Err(StreamError::NoConnection { node: name.to_owned(), reason });
                }
                DataPool::Offline => {
                    return Err(StreamError::NodeOffline { node: name.to_owned() });
                }
            };
            // An idle connection may have died unnoticed; then the next one is tried.
            match Self::ask(connection, &open).await {
                Ok(result) => return result,
                Err(error) => {
                    tracing::debug!(%error, node = name, "an idle data connection was dead");
                }
            }
        }
    }

    async fn ask(
        connection: DataConnection,
        open: &StreamOpen,
    ) -> Result<Result<Self, StreamError>, FrameError> {
        let mut frames = FrameStream::new(connection);
        frames.send(open).await?;
        match frames.receive::<StreamOpened>().await? {
            StreamOpened::Opened => {
                let (connection, early) = frames.into_parts();
                Ok(Ok(Self { connection, early }))
            }
            StreamOpened::Refused { error } => Ok(Err(StreamError::Refused(error))),
        }
    }

    /// Copies bytes both ways until both sides are done. `first` goes in before anything else.
    pub async fn relay<S>(mut self, mut client: S, first: &[u8]) -> io::Result<(u64, u64)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if !first.is_empty() {
            self.connection.write_all(first).await?;
        }
        if !self.early.is_empty() {
            client.write_all(&self.early).await?;
        }
        kohakuriver_net::relay(client, self.connection).await
    }
}
