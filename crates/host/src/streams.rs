//! Byte streams into instances: over data connections that runners dialled, or, where the runner
//! is in this process, straight to the agent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_link::frame::{FrameError, FrameStream};
use kohakuriver_link::protocol::{StreamOpen, StreamOpened, StreamTarget};
use kohakuriver_model::{NodeId, TaskId};
use kohakuriver_net::{Socket, relay_sockets};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

use crate::access::{Authorized, Wish};
use crate::host::App;
use crate::links::{DataConnection, DataPool};

/// From asking the runner to the first byte; the agent inside has answered by then.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// An open way into an instance; reading and writing are the instance's.
#[derive(Debug)]
pub struct InstanceStream {
    connection: Either<DataConnection, UnixStream>,
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
        if let Some(local) = app.links.local(node) {
            let agent = local.open(open).await.map_err(StreamError::Refused)?;
            return Ok(Self { connection: Either::Right(agent), early: Bytes::new() });
        }
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
                Ok(Ok(Self { connection: Either::Left(connection), early }))
            }
            StreamOpened::Refused { error } => Ok(Err(StreamError::Refused(error))),
        }
    }

    /// Copies bytes both ways until both sides are done.
    pub async fn relay<S>(self, client: S) -> io::Result<(u64, u64)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        kohakuriver_net::relay(client, self).await
    }

    /// The same for a connection of the network. `first` is what was read of it before.
    pub async fn relay_tcp(
        mut self,
        mut client: TcpStream,
        first: &[u8],
    ) -> io::Result<(u64, u64)> {
        self.connection.write_all(first).await?;
        client.write_all(&self.early).await?;
        self.early.clear();
        match self.connection {
            Either::Left(_) => self.relay(client).await,
            Either::Right(agent) => {
                relay_sockets(&Socket::from(client), &Socket::from(agent)).await
            }
        }
    }
}

impl AsyncRead for InstanceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.connection).poll_read(cx, buf);
        }
        let count = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for InstanceStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
