//! Byte streams into instances, over data connections that runners dialed, or, if the runner is in
//! this process, directly to the agent.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_model::bounds::{MAX_REMARK_BYTES, bound_text};
use kohakuriver_model::{InstanceId, NodeId};
use kohakuriver_net::{IntoLazyWrite, LazyWriteSocket, Prefixed, relay, relay_sockets};
use kohakuriver_runner_link::frame::{FrameError, FrameStream};
use kohakuriver_runner_link::protocol::{StreamOpen, StreamOpened, StreamTarget};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

use crate::access::{Authorized, Permission};
use crate::host::App;
use crate::runner_registry::{DataConnection, DataPool};

/// The limit from the command to the runner until the first byte; the agent has answered by then.
const OPEN_LIMIT: Duration = Duration::from_secs(15);

/// A stream into an instance: a data connection of its node, or a socket to its agent. The instance
/// may have sent bytes right behind its answer.
pub type InstanceStream = Prefixed<Either<DataConnection, LazyWriteSocket>>;

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

/// Opens a stream to `target`. `access` proves that the caller may enter the instance.
pub async fn open(
    app: &App,
    access: &Authorized,
    node: (&NodeId, &str),
    target: StreamTarget,
) -> Result<InstanceStream, StreamError> {
    debug_assert_eq!(access.permission(), Permission::Enter);
    let deadline = Instant::now() + OPEN_LIMIT;
    let attempt = open_on_any(app, access.task_id(), node, target);
    timeout_at(deadline, attempt).await.unwrap_or(Err(StreamError::Slow))
}

async fn open_on_any(
    app: &App,
    task_id: InstanceId,
    (node, name): (&NodeId, &str),
    target: StreamTarget,
) -> Result<InstanceStream, StreamError> {
    let open = StreamOpen { task_id, target };
    if let Some(local) = app.runners.local(node) {
        let agent = local.open(open).await.map_err(StreamError::Refused)?;
        let agent =
            agent.into_lazy_write().map_err(|error| StreamError::Refused(error.to_string()))?;
        return Ok(Prefixed::new(Either::Right(agent), Bytes::new()));
    }
    loop {
        let connection = match app.runners.take_data(node) {
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
        // An idle connection may have died unnoticed, so the next one is tried.
        match ask(connection, &open).await {
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
) -> Result<Result<InstanceStream, StreamError>, FrameError> {
    let mut frames = FrameStream::small(connection);
    frames.send(open).await?;
    Ok(match frames.receive::<StreamOpened>().await? {
        StreamOpened::Opened => {
            let (connection, early) = frames.into_parts();
            Ok(Prefixed::new(Either::Left(connection), early))
        }
        StreamOpened::Refused { mut error } => {
            bound_text(&mut error, MAX_REMARK_BYTES, true);
            Err(StreamError::Refused(error))
        }
    })
}

/// Copies bytes both ways until both sides are done. `first` has the client's bytes that were read
/// already.
pub async fn relay_tcp(
    stream: InstanceStream,
    mut client: TcpStream,
    first: &[u8],
) -> io::Result<(u64, u64)> {
    let (mut instance, early) = stream.into_parts();
    instance.write_all(first).await?;
    client.write_all(&early).await?;
    match instance {
        Either::Left(node) => relay(client, node).await,
        Either::Right(agent) => relay_sockets(client, agent).await,
    }
}
