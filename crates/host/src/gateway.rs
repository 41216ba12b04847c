//! The SSH gateway: one port, two ways in, told apart by the first bytes.
//!
//! ```text
//!  "SSH-2.0-..."          an SSH server that only jumps (ssh -J host:8002 root@name)   [jump]
//!  "REQUEST_TUNNEL id\n"  "SUCCESS\n" or "ERROR text\n", then bytes                     [tunnel]
//!  silence                the client waits for the server's name: an SSH client         [jump]
//! ```
//!
//! Where people log in, a jump asks for a key that its owner has registered, or for a certificate
//! that this host has signed (which opens the way to its one instance), and a tunnel for an API
//! token. Either way the encryption of the inner SSH session runs from the person's machine to the
//! agent inside the instance; the gateway sees ciphertext.
//!
//! From its first byte to the end of its login a client has [`Deadlines::ssh_login`], and until then
//! its connection may have to make way for another ([`Slots`]).

mod jump;
mod login;
mod person;
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

/// A connection costs a thread. A hundred forks of one machine may log in at once.
const BOUNDS: Bounds =
    Bounds { strangers: 512, strangers_of_one: 128, known: 4096, known_of_one: 128 };
/// Clients of the tunnel speak first, and at once. Some of SSH wait for the server's name.
const SILENCE_LIMIT: Duration = Duration::from_millis(200);

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
                () = login.overdue() => tracing::debug!(%peer, "an SSH client did not log in in time"),
                () = route(app, stream, client, configs) => {}
            }
        });
    }
}

/// A connection, for as long as it stands.
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
        Ok(Err(error)) => tracing::debug!(%error, "an SSH connection ended before its first byte"),
    }
}

/// `SSH-` and `REQUEST_TUNNEL` differ in their first byte; both servers check the rest.
async fn first_byte(stream: &TcpStream) -> std::io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((stream.peek(&mut byte).await? > 0).then_some(byte[0]))
}

/// For a client whose account has too many connections of this port.
fn too_many(full: Full) -> String {
    match full {
        Full::Holder => {
            format!(
                "your account has {} SSH connections open, as many as one may have",
                BOUNDS.known_of_one
            )
        }
        Full::All => "the host has as many SSH connections as it can; try again later".to_owned(),
    }
}
