//! `/ws/forward/{task}/{port}?proto=tcp|udp`: port forwarding for existing clients, whose local
//! connections all share one WebSocket.
//!
//! ```text
//!  accepted --instance answers--> text "CONNECTED", then frames of kohakuriver-wire's tunnel
//!      \--it does not--> text "Error: <why>" and the end
//!
//!  connect --stream opened--> connected, data both ways --close or the target's end--> gone
//!      \--refused--> error
//! ```
//!
//! The numbers of connections are the socket's own, so two clients never meet. The protocol has
//! no back-pressure for one connection; one that takes nothing holds the socket's others up for
//! [`STALL_LIMIT`] at most and is then ended. Our own command line opens a stream for each
//! connection instead and has no such limit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_wire::tunnel::{Kind, Proto, TunnelFrame};
use kohakuriver_wire::udp;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::socket::{self, NORMAL, REFUSED, Sender, TROUBLE};
use super::stream::slot;
use crate::access::Caller;
use crate::enter::{Entered, admit, enter};
use crate::host::App;
use crate::presence::Guard;
use crate::streams::InstanceStream;

/// Connections on one socket.
const MOST: usize = 1024;
/// Messages waiting for one target: about a megabyte of a busy client's.
const QUEUE: usize = 16;
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// After the client's close: how long the target may be silent before it is left.
const LINGER: Duration = Duration::from_secs(10);
/// A UDP flow without traffic is over.
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
    socket::serve(app, upgrade, async move |app, socket| {
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
    // Whether anything can be reached there at all, before a client counts on it. The socket goes
    // when its client may not be there any more, whether it has connections or none.
    let guard = match enter(&app, &caller, &text, StreamTarget::Ping).await {
        Ok(Entered { stream: _, guard }) => guard,
        Err(error) => {
            let code = if error.is_refusal() { REFUSED } else { TROUBLE };
            return refuse(&mut socket, code, &error.to_string()).await;
        }
    };
    if socket.send(Message::text("CONNECTED")).await.is_err() {
        return;
    }
    let (to_client, mut from_client) = socket.split();
    let (frames, queue) = mpsc::channel(64);
    let mut tunnel =
        Tunnel { app, caller, text, port, frames, targets: HashMap::new(), tasks: JoinSet::new() };
    let upward = async {
        while let Some(message) = socket::receive(&mut from_client).await {
            if let Message::Binary(bytes) = message {
                tunnel.take(bytes).await;
            }
        }
    };
    tokio::select! {
        () = upward => {}
        () = deliver(queue, to_client, &guard) => {}
    }
}

async fn refuse(socket: &mut WebSocket, code: u16, why: &str) {
    let _ = socket.send(Message::text(format!("Error: {why}"))).await;
    socket::close(socket, code, why).await;
}

async fn deliver(mut queue: mpsc::Receiver<TunnelFrame>, mut to_client: Sender, guard: &Guard) {
    let mut pings = socket::pings();
    loop {
        let message = tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => Message::Binary(frame.encode()),
                None => return socket::close(&mut to_client, NORMAL, "").await,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
            () = guard.cut() => {
                let why = "you may not enter this VPS any more";
                return socket::close(&mut to_client, REFUSED, why).await;
            }
        };
        if to_client.send(message).await.is_err() {
            return;
        }
    }
}

/// One client's socket and what it leads to. Dropping it ends every connection.
struct Tunnel {
    app: Arc<App>,
    caller: Caller,
    text: String,
    port: u16,
    frames: mpsc::Sender<TunnelFrame>,
    targets: HashMap<u32, mpsc::Sender<Bytes>>,
    tasks: JoinSet<()>,
}

impl Tunnel {
    async fn take(&mut self, bytes: Bytes) {
        let frame = match TunnelFrame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.complain(0, Proto::Tcp, error.to_string()).await,
        };
        // Those that ended by themselves.
        while self.tasks.try_join_next().is_some() {}
        self.targets.retain(|_, target| !target.is_closed());
        let (client, proto) = (frame.client, frame.proto);
        match frame.kind {
            Kind::Connect => self.connect(frame).await,
            Kind::Data => {
                // Unknown: it has ended meanwhile, and the client has been told or will be.
                let Some(target) = self.targets.get(&client) else {
                    return;
                };
                if timeout(STALL_LIMIT, target.send(frame.payload)).await.is_err() {
                    self.targets.remove(&client);
                    let why = "the service in the VPS takes no data".to_owned();
                    self.complain(client, proto, why).await;
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
            let why = format!("this tunnel leads to port {}", self.port);
            return self.complain(client, proto, why).await;
        }
        if self.targets.remove(&client).is_some() {
            let why = format!("connection {client} was open already");
            return self.complain(client, proto, why).await;
        }
        let slot = if self.targets.len() < MOST { slot(&self.app).ok() } else { None };
        let Some(slot) = slot else {
            return self.complain(client, proto, "too many connections".to_owned()).await;
        };
        let (target, queue) = mpsc::channel(QUEUE);
        self.targets.insert(client, target);
        let target = match proto {
            Proto::Tcp => StreamTarget::Tcp { port: self.port },
            Proto::Udp => StreamTarget::Udp { port: self.port },
        };
        let (app, caller, text) = (self.app.clone(), self.caller.clone(), self.text.clone());
        let out = Out { frames: self.frames.clone(), proto, client };
        self.tasks.spawn(async move {
            let _slot = slot;
            match enter(&app, &caller, &text, target).await {
                Ok(Entered { stream, guard }) => {
                    out.send(Kind::Connected, Bytes::new()).await;
                    let relayed = async {
                        match proto {
                            Proto::Tcp => relay(stream, queue, &out).await,
                            Proto::Udp => relay_datagrams(stream, queue, &out).await,
                        }
                    };
                    guard.during(relayed).await;
                    out.send(Kind::Close, Bytes::new()).await;
                }
                Err(error) => out.send(Kind::Error, Bytes::from(error.to_string())).await,
            }
        });
    }

    async fn complain(&self, client: u32, proto: Proto, why: String) {
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

async fn relay(stream: InstanceStream, mut queue: mpsc::Receiver<Bytes>, out: &Out) {
    let (mut from_target, mut to_target) = split(stream);
    let inward = async {
        while let Some(data) = queue.recv().await {
            if to_target.write_all(&data).await.is_err() {
                return;
            }
            if queue.is_empty() && to_target.flush().await.is_err() {
                return;
            }
        }
        // The client has said all it wants; the answer may be on its way still.
        let _ = to_target.shutdown().await;
    };
    let (closed, mut half_closed) = tokio::sync::watch::channel(false);
    let inward = async {
        inward.await;
        closed.send_replace(true);
        std::future::pending::<()>().await;
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
        () = inward => {}
        () = outward => {}
    }
}

async fn left_alone(half_closed: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = half_closed.wait_for(|closed| *closed).await;
    tokio::time::sleep(LINGER).await;
}

async fn relay_datagrams(stream: InstanceStream, mut queue: mpsc::Receiver<Bytes>, out: &Out) {
    let (mut from_target, mut to_target) = split(stream);
    let mut received = BytesMut::new();
    loop {
        received.reserve(2048);
        tokio::select! {
            data = queue.recv() => {
                let Some(data) = data else { return };
                let mut framed = BytesMut::new();
                udp::put(&mut framed, &data);
                if to_target.write_all(&framed).await.is_err() || to_target.flush().await.is_err() {
                    return;
                }
            }
            read = from_target.read_buf(&mut received) => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
                while let Some(datagram) = udp::take(&mut received) {
                    out.send(Kind::Data, datagram).await;
                }
            }
            () = tokio::time::sleep(UDP_IDLE) => return,
        }
    }
}
