//! The SSH gateway: one port, two protocols, distinguished by their first bytes.
//!
//! ```text
//!  "SSH-2.0-..."          an SSH server that only jumps (ssh -J host:8002 root@name)   [jump]
//!  "REQUEST_TUNNEL id\n"  "SUCCESS\n" or "ERROR text\n", then bytes                     [tunnel]
//!  silence                the client waits for the server's name: an SSH client         [jump]
//! ```
//!
//! With authentication on, a jump needs a registered key, or a certificate that this host has
//! signed (valid for one instance), and a tunnel needs an API token. Either way the inner SSH
//! session is encrypted from the user's computer to the agent inside the instance; the gateway sees
//! ciphertext.
//!
//! A client must finish its login within [`Deadlines::ssh_login`] of its first byte; until then its
//! connection may be closed in favor of another ([`Slots`]).

mod identity;
mod jump;
mod login;
mod thread;
mod tunnel;
mod window;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_runner_link::tls::keep_alive;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::host::{self, App};
use crate::limits::Full;
use crate::slots::{Bounds, Slots};
use crate::ssh_keys::KeyError;
use login::Login;

#[cfg(doc)]
use crate::config::Deadlines;

/// Each connection costs a thread. A hundred forks of one computer may log in at once.
const BOUNDS: Bounds =
    Bounds { strangers: 512, strangers_of_one: 128, known: 4096, known_of_one: 128 };
/// Tunnel clients send first, and at once. Some SSH clients wait for the server's version line.
const SILENCE_LIMIT: Duration = Duration::from_millis(200);

/// Returns the jump server's settings, with the host key of `data_dir`.
pub fn ssh_configs(data_dir: &Path) -> Result<Arc<jump::Configs>, KeyError> {
    jump::configs(data_dir).map(Arc::new)
}

/// Accepts connections until the shutdown.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    configs: Arc<jump::Configs>,
    shutdown: CancellationToken,
) {
    let slots = Slots::new("SSH", BOUNDS, app.config.trusted_proxies.clone());
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = host::accept(&listener, "SSH", &slots) => accepted,
        };
        let peer = peer.ip().to_canonical();
        let (slot, login) = (Arc::new(slots.enter(peer)), Login::new(app.config.deadlines));
        let (app, configs, shutdown) = (app.clone(), configs.clone(), shutdown.clone());
        app.tasks.clone().spawn(async move {
            keep_alive(&stream);
            let client = Client { address: peer, slot: slot.clone(), login: login.clone() };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = slot.closed() => {}
                () = login.overdue() => tracing::debug!(peer.addr = %peer, "SSH login timed out"),
                () = route(app, stream, client, configs) => {}
            }
        });
    }
}

/// An accepted connection, for as long as it is open.
#[derive(Clone, Debug)]
struct Client {
    address: IpAddr,
    slot: Arc<crate::slots::Slot>,
    login: Login,
}

async fn route(app: Arc<App>, stream: TcpStream, client: Client, configs: Arc<jump::Configs>) {
    match timeout(SILENCE_LIMIT, first_byte(&stream)).await {
        Ok(Ok(Some(b'S'))) => {
            let config = configs.of(&stream).await;
            jump::serve(app, stream, client, config).await;
        }
        Err(_) => jump::serve(app, stream, client, configs.of_silent()).await,
        Ok(Ok(Some(_))) => tunnel::serve(&app, stream, client).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "SSH connection ended before its first byte"),
    }
}

/// Peeks at the first byte. `SSH-` and `REQUEST_TUNNEL` differ in it; both servers check the rest.
async fn first_byte(stream: &TcpStream) -> std::io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((stream.peek(&mut byte).await? > 0).then_some(byte[0]))
}

/// Returns the message for a client whose account has too many connections to this port.
fn too_many(full: Full) -> String {
    match full {
        Full::Holder => {
            format!(
                "your account has {} open SSH connections, the limit of an account",
                BOUNDS.known_of_one
            )
        }
        Full::All => {
            "the host has reached its limit of SSH connections; try again later".to_owned()
        }
    }
}
