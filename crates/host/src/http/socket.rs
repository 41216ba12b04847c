//! Common behavior of all WebSockets into instances: bounds, keep-alive, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::error::ApiError;
use super::held::too_many;
use crate::access::Caller;
use crate::host::App;
use crate::limits::Holder;

/// The longest message a client has a reason to send.
const MAX_MESSAGE: usize = 1024 * 1024;
/// tungstenite would keep 128 KiB for each.
const READ_BUFFER: usize = 8 * 1024;
/// Often enough for proxies that cut what is silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A client that answered no ping for so long is gone, whatever TCP says.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(65);

/// Codes of RFC 6455 and what existing clients take them for.
pub const NORMAL: u16 = 1000;
/// Unknown, not running, not allowed.
pub const REFUSED: u16 = 1008;
/// The node or something on it is in trouble.
pub const TROUBLE: u16 = 1011;

pub type Sender = SplitSink<WebSocket, Message>;

/// Takes a client's socket, within the host's bounds, and serves it until `work` or the host ends.
pub fn serve<F>(
    app: Arc<App>,
    caller: &Caller,
    upgrade: WebSocketUpgrade,
    work: impl FnOnce(Arc<App>, WebSocket) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = ()> + Send,
{
    let slot = app.sockets.take(Holder::of(caller)).map_err(too_many)?;
    let bounded = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    Ok(bounded.on_upgrade(move |socket| async move {
        let _slot = slot;
        let shutdown = app.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work(app, socket) => {}
        }
    }))
}

/// When to ping next.
pub fn pings() -> Interval {
    let mut interval = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The next message, pongs left out; `None` when the client has gone or fell silent.
pub async fn receive<S>(socket: &mut S) -> Option<Message>
where
    S: StreamExt<Item = Result<Message, axum::Error>> + Unpin,
{
    loop {
        match tokio::time::timeout(SILENCE_LIMIT, socket.next()).await {
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return None,
            Ok(Some(Ok(message))) => return Some(message),
        }
    }
}

/// Says why and ends. A client that takes no more is left alone.
pub async fn close<S>(socket: &mut S, code: u16, reason: &str)
where
    S: SinkExt<Message> + Unpin,
{
    // A close frame holds 125 bytes, two of them the code.
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason.get(..end).unwrap_or_default();
    let frame = CloseFrame { code, reason: reason.into() };
    let sending = async {
        let _ = socket.send(Message::Close(Some(frame))).await;
        let _ = socket.close().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), sending).await;
}
