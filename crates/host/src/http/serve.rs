//! The API's port: accepts connections, speaks TLS where the host does, and serves HTTP on each.
//!
//! Handlers find the facts about a request's connection in its extensions: [`ClientAddress`] and
//! [`Secure`], behind a proxy too.
//!
//! [`ClientAddress`]: crate::client_address::ClientAddress
//! [`Secure`]: crate::client_address::Secure

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use http::StatusCode;
use http::header::HOST;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::held::Connection;
use super::router;
use super::write_deadline::WriteDeadline;
use crate::client_address::{is_trusted, origin};
use crate::config::Deadlines;
use crate::host::{self, App};
use crate::slots::{Bounds, Slot, Slots};

/// Connections; long-polling clients hold one each. An idle connection takes some KiB.
const BOUNDS: Bounds =
    Bounds { strangers: 512, strangers_of_one: 128, known: 2048, known_of_one: 256 };
/// The longest head of a request, and the buffer of a body. Unauthenticated clients may send it.
const BUFFER: usize = 64 * 1024;
/// From the connection to the end of the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The first byte of every TLS connection, and of no HTTP request.
const TLS_HANDSHAKE: u8 = 0x16;

/// Accepts connections until shutdown, then lets open requests finish.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    shutdown: CancellationToken,
) {
    let server = Server {
        router: router(app.clone()),
        tls: tls.map(TlsAcceptor::from),
        proxies: app.config.trusted_proxies.clone(),
        deadlines: app.config.deadlines,
        shutdown,
    };
    accept(Arc::new(server), listener, &app.tasks).await;
}

/// State shared by all connections.
struct Server {
    router: Router,
    tls: Option<TlsAcceptor>,
    proxies: Vec<IpNet>,
    deadlines: Deadlines,
    shutdown: CancellationToken,
}

async fn accept(server: Arc<Server>, listener: TcpListener, tasks: &TaskTracker) {
    let slots = Slots::new("API", BOUNDS, server.proxies.clone());
    loop {
        let (stream, peer) = tokio::select! {
            () = server.shutdown.cancelled() => return,
            accepted = host::accept(&listener, "API", &slots) => accepted,
        };
        let peer = peer.ip().to_canonical();
        let slot = Arc::new(slots.enter(peer));
        // Responses are small and latency matters.
        let _: io::Result<()> = stream.set_nodelay(true);
        let server = server.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = slot.closed() => tracing::debug!(peer.addr = %peer, "API connection closed for a newer one"),
                () = server.connection(stream, peer, slot.clone()) => {}
            }
        });
    }
}

/// The peer of a connection.
struct Peer {
    address: IpAddr,
    slot: Arc<Slot>,
}

/// The protocol of a client on a TLS port.
enum Spoken {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl Server {
    async fn connection(&self, stream: TcpStream, peer: IpAddr, slot: Arc<Slot>) {
        let from = Peer { address: peer, slot };
        let Some(acceptor) = &self.tls else {
            return self.http(stream, from, self.router.clone(), false).await;
        };
        let spoken = tokio::select! {
            () = self.shutdown.cancelled() => return,
            spoken = timeout(HANDSHAKE_LIMIT, detect_protocol(acceptor, stream)) => spoken,
        };
        match spoken {
            Ok(Ok(Spoken::Tls(stream))) => {
                self.http(*stream, from, self.router.clone(), true).await;
            }
            Ok(Ok(Spoken::Plain(stream))) => self.http(stream, from, needs_tls(), false).await,
            Ok(Err(error)) => tracing::debug!(peer.addr = %peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer.addr = %peer, "TLS handshake timed out"),
        }
    }

    async fn http<S>(&self, stream: S, peer: Peer, router: Router, over_tls: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = is_trusted(peer.address, &self.proxies);
        let connection = Connection { slot: peer.slot, shared };
        let service =
            TowerToHyperService::new(tower::service_fn(move |request: http::Request<Incoming>| {
                let (client, secure) =
                    origin(peer.address, over_tls, request.headers(), &self.proxies);
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(client);
                request.extensions_mut().insert(secure);
                request.extensions_mut().insert(connection.clone());
                tower::ServiceExt::oneshot(router.clone(), request)
            }));
        let stream = WriteDeadline::new(stream, self.deadlines.response);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.deadlines.request_head)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "API connection failed");
        }
    }
}

/// Detects the protocol by the first byte, which stays in the socket.
async fn detect_protocol(acceptor: &TlsAcceptor, stream: TcpStream) -> io::Result<Spoken> {
    let mut byte = [0];
    if stream.peek(&mut byte).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if byte == [TLS_HANDSHAKE] {
        return Ok(Spoken::Tls(Box::new(acceptor.accept(stream).await?)));
    }
    Ok(Spoken::Plain(stream))
}

/// Answers plain HTTP on the TLS port.
fn needs_tls() -> Router {
    Router::new().fallback(async |request: http::Request<Body>| {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let hint = match host {
            Some(host) => format!("use https://{host}{}", request.uri().path()),
            None => "write https:// instead of http://".to_owned(),
        };
        let detail = "this port accepts HTTPS only";
        let answer = ApiError::new(StatusCode::BAD_REQUEST, "https_only", detail).hint(hint);
        // Close: anything sent on this connection is readable on the network.
        ([(http::header::CONNECTION, "close")], answer).into_response()
    })
}

#[cfg(test)]
mod tests;
