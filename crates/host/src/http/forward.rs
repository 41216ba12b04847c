//! `/ws/forward/{task}/{port}?proto=tcp|udp`: port forwarding for existing clients, whose local
//! connections all share one WebSocket.
//!
//! ```text
//!  accepted --instance responds---> text "CONNECTED", then frames of kohakuriver-agent-protocol's tunnel
//!      \--it fails--> text "Error: <why>" and the end
//!
//!  connect --stream opened--> connected, data both ways --close or the target's end--> gone
//!      \--refused--> error
//! ```
//!
//! The socket numbers its connections itself, so two clients never conflict. The protocol has no
//! back-pressure per connection; a connection whose target reads nothing delays the socket's others
//! by [`STALL_LIMIT`] at most and is then ended. Queued data is counted in bytes, per connection
//! ([`WAITING`]) and for all that an account has open; when that is scarce, stalled connections end
//! as well. Our own command line opens a stream per connection instead and has no such limit.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_agent_protocol::tunnel::{Kind, Proto, TunnelFrame};
use kohakuriver_agent_protocol::udp;
use kohakuriver_runner_link::protocol::StreamTarget;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::socket::{self, NORMAL, REFUSED, Sender, TROUBLE};
use crate::access::Caller;
use crate::host::App;
use crate::limits::{self, HeldBytes, Holder};
use crate::sessions::open::{OpenSession, admit, open_session};
use crate::sessions::streams::InstanceStream;

/// Connections on one socket.
const MOST: usize = 1024;
/// Queued messages per target, and their bytes. A longer message is queued alone.
const QUEUE: usize = 16;
const WAITING: usize = 256 * 1024;
/// Queued messages to the client, of up to a block each.
const TO_CLIENT: usize = 16;
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// After the client's close: how long the target may be silent before its connection is dropped.
const LINGER: Duration = Duration::from_secs(10);
/// A UDP flow without traffic for this long is closed.
const UDP_IDLE: Duration = Duration::from_secs(120);
const BLOCK: usize = 32 * 1024;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/ws/forward/{task}/{port}", get(forward))
}

#[derive(Debug, Deserialize)]
struct ForwardQuery {
    proto: Option<String>,
}

async fn forward(
    State(app): State<Arc<App>>,
    Path((text, port)): Path<(String, String)>,
    Query(query): Query<ForwardQuery>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, super::error::ApiError> {
    admit(&app, &caller, &text).await?;
    let who = caller.clone();
    socket::serve(app, &who, upgrade, async move |app, socket| {
        let proto = query.proto.unwrap_or_else(|| "tcp".to_owned());
        serve(app, caller, text, (&port, &proto), socket).await;
    })
}

async fn serve(
    app: Arc<App>,
    caller: Caller,
    text: String,
    (port, proto): (&str, &str),
    mut socket: WebSocket,
) {
    let Some(port) = port.parse().ok().filter(|port: &u16| *port != 0) else {
        return refuse(&mut socket, REFUSED, &format!("'{port}' is not a port from 1 to 65535"))
            .await;
    };
    if !matches!(proto, "tcp" | "udp") {
        let why = format!("'{proto}' is not a protocol; use tcp or udp");
        return refuse(&mut socket, REFUSED, &why).await;
    }
    // Checks first that the instance can be reached, before a client relies on it. The socket ends
    // when its client loses the permission, with or without connections.
    let guard = match open_session(&app, &caller, &text, StreamTarget::Ping).await {
        Ok(OpenSession { stream: _, guard }) => guard,
        Err(error) => {
            let code = if error.is_refusal() { REFUSED } else { TROUBLE };
            return refuse(&mut socket, code, &error.to_string()).await;
        }
    };
    if socket.send(Message::text("CONNECTED")).await.is_err() {
        return;
    }
    let (to_client, from_client) = socket.split();
    let (frames, queue) = mpsc::channel(TO_CLIENT);
    let waiting = app.waiting.of(Holder::of(&caller));
    let mut tunnel = Tunnel {
        app,
        caller,
        text,
        port,
        frames,
        waiting,
        targets: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let (mut to_client, mut from_client) = (to_client, from_client);
    let upward = async {
        while let Some(message) = socket::receive(&mut from_client).await {
            if let Message::Binary(bytes) = message {
                tunnel.take(bytes).await;
            }
        }
    };
    let carried = async {
        tokio::select! {
            () = upward => {}
            () = deliver(queue, &mut to_client) => {}
        }
    };
    // Also if the client reads nothing.
    if guard.during(carried).await.is_none() {
        let why = "you no longer have access to this VPS";
        socket::close(&mut to_client, REFUSED, why).await;
    }
}

async fn refuse(socket: &mut WebSocket, code: u16, why: &str) {
    let _ = socket.send(Message::text(format!("Error: {why}"))).await;
    socket::close(socket, code, why).await;
}

async fn deliver(mut queue: mpsc::Receiver<TunnelFrame>, to_client: &mut Sender) {
    let mut pings = socket::pings();
    loop {
        let message = tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => Message::Binary(frame.encode()),
                None => return socket::close(to_client, NORMAL, "").await,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if to_client.send(message).await.is_err() {
            return;
        }
    }
}

/// A client's socket and its connections. Dropping it ends every connection.
struct Tunnel {
    app: Arc<App>,
    caller: Caller,
    text: String,
    port: u16,
    frames: mpsc::Sender<TunnelFrame>,
    /// The limit that queued data counts against.
    waiting: limits::Bytes,
    targets: HashMap<u32, Target>,
    tasks: JoinSet<()>,
}

/// The sender of a connection's data.
struct Target {
    queue: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
}

/// Data on its way to a target. Dropping it frees its memory.
struct Piece {
    data: Bytes,
    _room: Option<OwnedSemaphorePermit>,
    _held: HeldBytes,
}

impl Target {
    /// Waits until the queue has capacity for the data. Returns `None` if the connection has ended.
    async fn take(&self, data: Bytes, waiting: &limits::Bytes) -> Option<()> {
        let size = u32::try_from(data.len().min(WAITING)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(size).await.ok();
        let held = waiting.hold(data.len()).await;
        self.queue.send(Piece { data, _room: room, _held: held }).await.ok()
    }
}

impl Tunnel {
    async fn take(&mut self, bytes: Bytes) {
        let frame = match TunnelFrame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.send_error(0, Proto::Tcp, error.to_string()).await,
        };
        // Connections that ended on their own.
        while self.tasks.try_join_next().is_some() {}
        self.targets.retain(|_, target| !target.queue.is_closed());
        let (client, proto) = (frame.client, frame.proto);
        match frame.kind {
            Kind::Connect => self.connect(frame).await,
            Kind::Data => {
                // Unknown: it has ended meanwhile, and the client has been or will be notified.
                let Some(target) = self.targets.get(&client) else {
                    return;
                };
                // A slice of a message would keep the whole message in memory.
                let data = Bytes::copy_from_slice(&frame.payload);
                drop(frame);
                if timeout(STALL_LIMIT, target.take(data, &self.waiting)).await.is_err() {
                    self.targets.remove(&client);
                    self.send_error(client, proto, STALLED.to_owned()).await;
                }
            }
            Kind::Close | Kind::Error => {
                self.targets.remove(&client);
            }
            Kind::Ping => {
                let pong = TunnelFrame { kind: Kind::Pong, ..frame };
                let _ = self.frames.send(pong).await;
            }
            Kind::Connected | Kind::Pong => {}
        }
    }

    async fn connect(&mut self, frame: TunnelFrame) {
        let (client, proto) = (frame.client, frame.proto);
        if frame.port != 0 && frame.port != self.port {
            let why = format!("this tunnel is for port {}", self.port);
            return self.send_error(client, proto, why).await;
        }
        if self.targets.remove(&client).is_some() {
            let why = format!("connection {client} is already open");
            return self.send_error(client, proto, why).await;
        }
        if self.targets.len() >= MOST {
            return self.send_error(client, proto, "too many connections".to_owned()).await;
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let room = Arc::new(Semaphore::new(WAITING));
        self.targets.insert(client, Target { queue: sender, room });
        let target = match proto {
            Proto::Tcp => StreamTarget::Tcp { port: self.port },
            Proto::Udp => StreamTarget::Udp { port: self.port },
        };
        let (app, caller, text) = (self.app.clone(), self.caller.clone(), self.text.clone());
        let out = Out { frames: self.frames.clone(), proto, client };
        let waiting = self.waiting.clone();
        self.tasks.spawn(async move {
            match open_session(&app, &caller, &text, target).await {
                Ok(OpenSession { stream, guard }) => {
                    out.send(Kind::Connected, Bytes::new()).await;
                    let relayed = async {
                        match proto {
                            Proto::Tcp => relay(stream, queue, &out, &waiting).await,
                            Proto::Udp => relay_datagrams(stream, queue, &out, &waiting).await,
                        }
                    };
                    match guard.during(relayed).await {
                        Some(Err(Stalled)) => out.send(Kind::Error, Bytes::from(STALLED)).await,
                        Some(Ok(())) | None => out.send(Kind::Close, Bytes::new()).await,
                    }
                }
                Err(error) => out.send(Kind::Error, Bytes::from(error.to_string())).await,
            }
        });
    }

    async fn send_error(&self, client: u32, proto: Proto, why: String) {
        let out = Out { frames: self.frames.clone(), proto, client };
        out.send(Kind::Error, Bytes::from(why)).await;
    }
}

/// Where one connection's frames go.
struct Out {
    frames: mpsc::Sender<TunnelFrame>,
    proto: Proto,
    client: u32,
}

impl Out {
    /// A socket that is gone ends its connections by dropping them.
    async fn send(&self, kind: Kind, payload: Bytes) {
        let (proto, client) = (self.proto, self.client);
        let _ = self.frames.send(TunnelFrame { kind, proto, client, port: 0, payload }).await;
    }
}

/// A connection that was ended because its target takes nothing.
struct Stalled;

const STALLED: &str = "the service in the VPS takes no data";

/// Writes all of it, unless the target takes none of it while others need the memory.
async fn write_all(
    to_target: &mut WriteHalf<InstanceStream>,
    mut data: &[u8],
    waiting: &limits::Bytes,
) -> Result<io::Result<()>, Stalled> {
    while !data.is_empty() {
        match timeout(STALL_LIMIT, to_target.write(data)).await {
            Ok(Ok(0)) => return Ok(Err(io::ErrorKind::WriteZero.into())),
            Ok(Ok(count)) => data = data.get(count..).unwrap_or_default(),
            Ok(Err(error)) => return Ok(Err(error)),
            Err(_) if waiting.is_scarce() => return Err(Stalled),
            Err(_) => {}
        }
    }
    Ok(Ok(()))
}

async fn relay(
    stream: InstanceStream,
    mut queue: mpsc::Receiver<Piece>,
    out: &Out,
    waiting: &limits::Bytes,
) -> Result<(), Stalled> {
    let (mut from_target, mut to_target) = split(stream);
    let (closed, mut half_closed) = tokio::sync::watch::channel(false);
    let inward = async {
        while let Some(piece) = queue.recv().await {
            if write_all(&mut to_target, &piece.data, waiting).await?.is_err() {
                break;
            }
            if queue.is_empty() && to_target.flush().await.is_err() {
                break;
            }
        }
        // No more goes in; the answer may be on its way still.
        let _ = to_target.shutdown().await;
        closed.send_replace(true);
        std::future::pending().await
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BLOCK);
            let read = tokio::select! {
                read = from_target.read_buf(&mut buffer) => read,
                () = left_alone(&mut half_closed) => return,
            };
            match read {
                Ok(0) | Err(_) => return,
                Ok(_) => out.send(Kind::Data, buffer.split().freeze()).await,
            }
        }
    };
    tokio::select! {
        ended = inward => ended,
        () = outward => Ok(()),
    }
}

async fn left_alone(half_closed: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = half_closed.wait_for(|closed| *closed).await;
    tokio::time::sleep(LINGER).await;
}

async fn relay_datagrams(
    stream: InstanceStream,
    mut queue: mpsc::Receiver<Piece>,
    out: &Out,
    waiting: &limits::Bytes,
) -> Result<(), Stalled> {
    let (mut from_target, mut to_target) = split(stream);
    let mut received = BytesMut::new();
    loop {
        received.reserve(2048);
        tokio::select! {
            piece = queue.recv() => {
                let Some(piece) = piece else { return Ok(()) };
                let mut framed = BytesMut::new();
                udp::put(&mut framed, &piece.data);
                let written = write_all(&mut to_target, &framed, waiting).await?;
                if written.is_err() || to_target.flush().await.is_err() {
                    return Ok(());
                }
            }
            read = from_target.read_buf(&mut received) => {
                if !matches!(read, Ok(1..)) {
                    return Ok(());
                }
                while let Some(datagram) = udp::take(&mut received) {
                    out.send(Kind::Data, datagram).await;
                }
            }
            () = tokio::time::sleep(UDP_IDLE) => return Ok(()),
        }
    }
}
