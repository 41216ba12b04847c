//! Ports of the instance's loopback.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::BytesMut;
use kohakuriver_agent_protocol::udp::{self, MAX_DATAGRAM};
use kohakuriver_agent_protocol::{StreamReply, write_reply};
use kohakuriver_net::{Socket, relay_sockets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::serve::refuse;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Connects and copies both ways until both sides are done.
pub(crate) async fn tcp(mut stream: Socket, port: u16) {
    let target = match timeout(CONNECT_DEADLINE, connect_local(port)).await {
        Ok(Ok(target)) => target,
        Ok(Err(error)) => {
            let error = format!("nothing answers at port {port} in the VPS: {}", plain(&error));
            refuse(&mut stream, error).await;
            return;
        }
        Err(_) => {
            let error = format!("port {port} in the VPS does not answer");
            refuse(&mut stream, error).await;
            return;
        }
    };
    let _ = target.set_nodelay(true);
    if write_reply(&mut stream, &StreamReply::Ready).await.is_err() {
        return;
    }
    if let Err(error) = relay_sockets(stream, target).await {
        tracing::debug!(port, %error, "relay ended");
    }
}

/// The system's words, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

async fn connect_local(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => Ok(stream),
        // The first error is the one people expect to read.
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error),
    }
}

/// Carries one flow of datagrams until the stream ends. A service that does not listen yet is no
/// end: datagrams may get lost, and the next one may find it there.
pub(crate) async fn udp(mut stream: Socket, port: u16) {
    let socket = match open_flow(port).await {
        Ok(socket) => socket,
        Err(error) => {
            let error = format!("cannot send to UDP port {port} in the VPS: {}", plain(&error));
            refuse(&mut stream, error).await;
            return;
        }
    };
    if write_reply(&mut stream, &StreamReply::Ready).await.is_err() {
        return;
    }
    let (mut from_client, mut to_client) = stream.into_split();
    let inward = async {
        let mut received = BytesMut::new();
        loop {
            received.reserve(2048);
            if !matches!(from_client.read_buf(&mut received).await, Ok(1..)) {
                return;
            }
            while let Some(datagram) = udp::take(&mut received) {
                // Refused, too large, no room: it is lost, as datagrams are.
                let _ = socket.send(&datagram).await;
            }
        }
    };
    let outward = async {
        let mut datagram = vec![0; MAX_DATAGRAM];
        let mut framed = BytesMut::new();
        loop {
            let Ok(length) = socket.recv(&mut datagram).await else {
                // What the kernel heard of an earlier datagram: nobody listened.
                continue;
            };
            framed.clear();
            udp::put(&mut framed, datagram.get(..length).unwrap_or_default());
            if to_client.write_all(&framed).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

/// Opens an IPv4 socket, unless only IPv6's loopback has a listener on that port.
async fn open_flow(port: u16) -> io::Result<UdpSocket> {
    let four = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    four.connect((Ipv4Addr::LOCALHOST, port)).await?;
    if !listens(Ipv6Addr::LOCALHOST, port).await || listens(Ipv4Addr::LOCALHOST, port).await {
        return Ok(four);
    }
    let six = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await?;
    six.connect((Ipv6Addr::LOCALHOST, port)).await?;
    Ok(six)
}

/// Returns whether the port is bound, by trying to bind it.
async fn listens(address: impl Into<std::net::IpAddr>, port: u16) -> bool {
    matches!(
        UdpSocket::bind((address.into(), port)).await,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse
    )
}
