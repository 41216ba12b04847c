//! SFTP on standard input and output, in a process that runs as the user whose files it serves.

mod files;
mod names;
mod stdio;

use tokio::sync::oneshot;

use crate::error::AgentError;

/// Larger than the most a client sends at once, which [`files`] announces.
const MAX_PACKET: u32 = 512 * 1024;

/// Serves SFTP version 3 on standard input and output until the client is done.
pub fn sftp_server() -> Result<(), AgentError> {
    crate::sys::limit_allocator();
    tokio::runtime::Builder::new_current_thread().build().map_err(AgentError::Runtime)?.block_on(
        async {
            let (done, ended) = oneshot::channel();
            let config = russh_sftp::server::Config { max_client_packet_len: MAX_PACKET };
            let stream = stdio::Stdio::new(done);
            russh_sftp::server::run_with_config(stream, files::Files::default(), config).await;
            // The library serves in a task of its own and drops the stream when it is done.
            match ended.await {
                Ok(error) => Err(AgentError::Sftp(error)),
                Err(_) => Ok(()),
            }
        },
    )
}
