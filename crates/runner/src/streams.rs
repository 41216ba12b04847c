//! Streams into this node's instances, requested by the host or locally.

use std::fmt;
use std::sync::Arc;

use kohakuriver_net::Socket;
use kohakuriver_runner_link::protocol::{StreamOpen, StreamTarget};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::agent_stream::{self, AgentError};
use crate::supervisor::InstanceSupervisor;

/// Each that the host is not in this process for costs two sockets and, while idle, a few KiB.
pub const MOST_STREAMS: usize = 4096;

/// The streams of this node, of any session of the link.
pub struct Streams {
    supervisor: Arc<InstanceSupervisor>,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    pub(crate) fn new(supervisor: Arc<InstanceSupervisor>) -> Self {
        Self { supervisor, permits: Arc::new(Semaphore::new(MOST_STREAMS)) }
    }

    /// Returns the permit for one more stream, or `None` at the limit.
    pub fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Opens a stream of the target's bytes.
    ///
    /// # Errors
    /// The instance is not there, or its agent refused.
    pub async fn open(&self, open: &StreamOpen) -> Result<Socket, AgentError> {
        let id = open.task_id;
        let backend = self.supervisor.backend(id).ok_or(AgentError::NotHere)?;
        if open.target == StreamTarget::Attach {
            let (near, far) = UnixStream::pair().map_err(AgentError::Unreachable)?;
            tokio::spawn(async move { backend.attach(id, far).await });
            return Ok(near.into());
        }
        if open.target == StreamTarget::Settings {
            let error = "only its node may send an instance's settings";
            return Err(AgentError::Refused(error.to_owned()));
        }
        let agent = backend.agent(id).ok_or(AgentError::NoAgent)?;
        agent_stream::open(&agent, &open.target).await
    }
}
