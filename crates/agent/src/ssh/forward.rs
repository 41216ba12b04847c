//! Channels that carry a connection, whichever side it was opened from.

use std::time::Duration;

use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::flow::{Inbound, pump};
use super::window::Window;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Connects, then relays until both directions have ended or the client closes (`ssh -L`, `-D`, `-J`, `-W`).
pub(super) async fn run_tcp(
    channel: Channel<Msg>,
    host: String,
    port: u16,
    reply: ChannelOpenHandle,
    window: Window,
    closed: CancellationToken,
) {
    let stream = match timeout(CONNECT_DEADLINE, kohakuriver_net::connect(&host, port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%host, port, %error, "forward not connected");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        }
        Err(_) => {
            tracing::debug!(%host, port, "forward not connected in time");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        }
    };
    reply.accept().await;
    let (from_target, to_target) = stream.into_split();
    tokio::select! {
        () = closed.cancelled() => {}
        () = relay(channel, from_target, to_target, window) => {}
    }
}

/// Relays until both directions have ended or the client closes.
pub(super) async fn relay<R, W>(
    channel: Channel<Msg>,
    from_target: R,
    mut to_target: W,
    window: Window,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_client, to_client) = channel.split();
    let outward = async {
        pump(from_target, &to_client, None).await;
        let _ = to_client.eof().await;
    };
    tokio::pin!(outward);

    let mut outward_done = false;
    let mut client_eof = false;
    let mut inbound = Inbound::new(window);
    while !outward_done || inbound.is_open() {
        tokio::select! {
            message = from_client.wait() => match message {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    inbound.push(data);
                }
                Some(ChannelMsg::Eof) => client_eof = true,
                Some(_) => {}
                None => break,
            },
            written = inbound.write_some(&mut to_target), if !inbound.is_empty() => {
                if written.is_err() {
                    inbound.close();
                }
            }
            () = &mut outward, if !outward_done => outward_done = true,
        }
        if client_eof && inbound.is_empty() && inbound.is_open() {
            inbound.close();
            let _ = to_target.shutdown().await;
        }
    }
    let _ = to_client.close().await;
}
