//! The SSH gateway: one port, two ways in, told apart by the first bytes.
//!
//! ```text
//!  "SSH-2.0-..."          an SSH server that only jumps (ssh -J host:8002 root@name)   [jump]
//!  "REQUEST_TUNNEL id\n"  "SUCCESS\n" or "ERROR text\n", then bytes                     [tunnel]
//! ```
//!
//! Where people log in, a jump asks for a key that its owner has registered, or for a certificate
//! that this host has signed (which opens the way to its one instance), and a tunnel for an API
//! token. Either way the encryption of the inner SSH session runs from the person's machine to the
//! agent inside the instance; the gateway sees ciphertext.

mod jump;
mod person;
mod thread;
mod tunnel;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_link::tls::keep_alive;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::host::App;
use crate::ssh_keys::KeyError;

/// Everybody's SSH sessions together.
const MAX_CONNECTIONS: usize = 4096;
/// A client must say what it wants within this.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(10);

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
                () = route(app, stream, peer.ip().to_canonical(), configs) => {}
            }
            drop(slot);
        });
    }
}

async fn route(app: Arc<App>, stream: TcpStream, address: IpAddr, configs: Arc<jump::Configs>) {
    match timeout(FIRST_BYTES_LIMIT, first_byte(&stream)).await {
        Ok(Ok(Some(b'S'))) => jump::serve(app, stream, address, &configs).await,
        Ok(Ok(Some(_))) => tunnel::serve(&app, stream, address).await,
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
