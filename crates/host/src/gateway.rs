//! The SSH gateway: one port, two ways in, told apart by the first bytes.
//!
//! ```text
//!  "SSH-2.0-..."          an SSH server that only jumps (ssh -J host:8002 root@name)   [jump]
//!  "REQUEST_TUNNEL id\n"  "SUCCESS\n" or "ERROR text\n", then bytes                     [tunnel]
//! ```
//!
//! Either way the encryption of the inner SSH session runs from the person's machine to the
//! agent inside the instance; the gateway sees ciphertext.

mod jump;
mod tunnel;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_link::tls::keep_alive;
use kohakuriver_model::Status;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access::{Caller, Wish, authorize};
use crate::host::App;
use crate::instances::{self, InstanceError, display_name};
use crate::streams::{InstanceStream, StreamError};
use crate::view;

/// Everybody's SSH sessions together.
const MAX_CONNECTIONS: usize = 4096;
/// A client must say what it wants within this.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot use {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} is not a key", path.display())]
    Key { path: PathBuf, source: russh::keys::Error },
}

/// The jump server's settings, with the host key of `data_dir`.
pub fn ssh_configs(data_dir: &Path) -> Result<Arc<jump::Configs>, KeyError> {
    jump::configs(data_dir).map(Arc::new)
}

/// Accepts until told to stop.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    configs: Arc<jump::Configs>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                crate::host::accept_failed("SSH", &error).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many SSH connections; one was dropped");
            continue;
        };
        let (app, configs, shutdown) = (app.clone(), configs.clone(), shutdown.clone());
        app.tasks.clone().spawn(async move {
            keep_alive(&stream);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = route(app, stream, configs) => {}
            }
            drop(slot);
        });
    }
}

async fn route(app: Arc<App>, stream: TcpStream, configs: Arc<jump::Configs>) {
    match timeout(FIRST_BYTES_LIMIT, first_byte(&stream)).await {
        Ok(Ok(Some(b'S'))) => jump::serve(app, stream, &configs).await,
        Ok(Ok(Some(_))) => tunnel::serve(&app, stream).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an SSH connection ended before its first byte"),
        Err(_) => tracing::debug!("an SSH client said nothing"),
    }
}

/// `SSH-` and `REQUEST_TUNNEL` differ in their first byte; both servers check the rest.
async fn first_byte(stream: &TcpStream) -> std::io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((stream.peek(&mut byte).await? > 0).then_some(byte[0]))
}

/// Why a way in was refused, in one line for the person at the other end.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("VPS {name} is {status}; kohakuriver vps restart starts it")]
    NotRunning { name: String, status: Status },
    #[error("VPS {name} is paused; kohakuriver vps resume lets it go on")]
    Paused { name: String },
    #[error("VPS {name} was created without --ssh")]
    NoSsh { name: String },
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Opens the SSH server of the instance that `text` means.
async fn enter(app: &App, caller: &Caller, text: &str) -> Result<InstanceStream, EnterError> {
    let id = instances::find(app, text).await?;
    let access = authorize(caller, Wish::Enter, id);
    let row = instances::get(app, &access).await?;
    let name = display_name(row.id, &row.spec);
    let status = view::status_of(app, &row);
    if row.spec.ssh.is_none() {
        return Err(EnterError::NoSsh { name });
    }
    match status {
        Status::Running => {}
        // Its SSH server is as frozen as the rest: an answer now is better than silence.
        Status::Paused => return Err(EnterError::Paused { name }),
        // It may well run: what cannot be reached says so itself.
        Status::Lost => {}
        Status::PendingApproval
        | Status::Rejected
        | Status::Pending
        | Status::Assigning
        | Status::Completed
        | Status::Failed
        | Status::Killed
        | Status::KilledOom
        | Status::Stopped => return Err(EnterError::NotRunning { name, status }),
    }
    let node = (&row.node_id, row.node_name.as_str());
    Ok(InstanceStream::open(app, &access, node, StreamTarget::Ssh).await?)
}
