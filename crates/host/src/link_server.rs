//! The link port: accepts runners and dispatches each connection by its protocol name.

mod pace;
mod session;

use std::sync::Arc;

use kohakuriver_model::NodeId;
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::liveness::HANDSHAKE_LIMIT;
use kohakuriver_runner_link::pki::node_of_certificate;
use kohakuriver_runner_link::protocol::{ALPN_CONTROL, ALPN_DATA, ALPN_ENROLL};
use kohakuriver_runner_link::tls::keep_alive;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::host::App;
use crate::join;

/// Maximum concurrent handshakes: a bound on what unauthenticated peers can hold.
const MAX_HANDSHAKES: usize = 256;

/// Accepts connections until shutdown.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                crate::host::accept_failed("link", &error).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!(peer.addr = %peer, "too many handshakes at once; connection dropped");
            continue;
        };
        let (app, acceptor, shutdown) = (app.clone(), acceptor.clone(), shutdown.clone());
        app.tasks.clone().spawn(async move {
            keep_alive(&stream);
            let handshake = timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await;
            match handshake {
                Ok(Ok(stream)) => dispatch(app, stream, permit, shutdown).await,
                Ok(Err(error)) => {
                    tracing::debug!(peer.addr = %peer, %error, "link handshake failed");
                }
                Err(_) => tracing::debug!(peer.addr = %peer, "link handshake timed out"),
            }
        });
    }
}

/// Routes a connection. The permit is held until the peer has authenticated.
async fn dispatch(
    app: Arc<App>,
    stream: TlsStream<TcpStream>,
    permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
) {
    let (_, tls) = stream.get_ref();
    let protocol = tls.alpn_protocol().map(<[u8]>::to_vec);
    let node = tls.peer_certificates().and_then(|chain| node_of_certificate(chain.first()?));
    if node.is_some() {
        drop(permit);
    }
    match (protocol.as_deref(), node) {
        (Some(ALPN_ENROLL), _) => join::serve(&app, FrameStream::small(stream)).await,
        (Some(ALPN_CONTROL), Some(node)) => session::serve(app, node, stream, shutdown).await,
        (Some(ALPN_DATA), Some(node)) => accept_data(&app, &node, stream),
        _ => tracing::debug!("link connection without certificate or protocol dropped"),
    }
}

/// Adds a data connection to its node's pool. A removed node has no control session, so its data
/// connections are dropped.
fn accept_data(app: &App, node: &NodeId, stream: TlsStream<TcpStream>) {
    app.runners.offer_data(node, stream);
}
