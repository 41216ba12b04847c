//! Forwarding of datagrams: a flow for each local peer while it has traffic.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_agent_protocol::udp::{self, MAX_DATAGRAM};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Way;

/// Idle time after which a flow ends, similar to that of NATs.
const IDLE: Duration = Duration::from_secs(60);
const MOST_FLOWS: usize = 1024;
/// Limit of datagrams that wait for a slow stream; more are dropped, as in a network.
const QUEUE: usize = 256;

pub async fn serve(way: Arc<Way>, socket: UdpSocket, remote: u16) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    let mut datagram = vec![0; MAX_DATAGRAM];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut datagram).await else {
            // An ICMP error: an earlier reply had no receiver.
            continue;
        };
        flows.retain(|_, flow| !flow.is_closed());
        if !flows.contains_key(&peer) {
            if flows.len() >= MOST_FLOWS {
                continue;
            }
            let (sender, queue) = mpsc::channel(QUEUE);
            flows.insert(peer, sender);
            let (way, socket) = (Arc::clone(&way), Arc::clone(&socket));
            tokio::spawn(async move {
                if let Some(failure) = carry(&way, &socket, peer, remote, queue).await {
                    way.complain(&failure);
                }
            });
        }
        if let Some(flow) = flows.get(&peer) {
            let _ =
                flow.try_send(Bytes::copy_from_slice(datagram.get(..length).unwrap_or_default()));
        }
    }
}

async fn carry(
    way: &Way,
    socket: &UdpSocket,
    peer: SocketAddr,
    port: u16,
    mut queue: mpsc::Receiver<Bytes>,
) -> Option<crate::error::CommandError> {
    let stream = match way.open(&StreamTarget::Udp { port }).await {
        Ok(stream) => stream,
        Err(failure) => return Some(failure),
    };
    let (mut from_vps, mut to_vps) = split(stream);
    let mut received = BytesMut::new();
    let mut framed = BytesMut::new();
    loop {
        received.reserve(2048);
        tokio::select! {
            data = queue.recv() => {
                framed.clear();
                udp::put(&mut framed, &data?);
                if to_vps.write_all(&framed).await.is_err() {
                    return None;
                }
            }
            read = from_vps.read_buf(&mut received) => {
                // The stream is lost; the peer's next datagram opens another flow.
                if !matches!(read, Ok(1..)) {
                    return None;
                }
                while let Some(datagram) = udp::take(&mut received) {
                    let _ = socket.send_to(&datagram, peer).await;
                }
            }
            () = sleep(IDLE) => return None,
        }
    }
}
