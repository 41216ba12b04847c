//! Terminals over WebSockets.
//!
//! ```text
//!  /ws/task/{task}/session    the session protocol of kohakuriver-agent-protocol, in binary messages
//!  /ws/task/{task}/terminal   JSON, for browsers and existing clients
//! ```
//!
//! In the second, all messages are text:
//!
//! ```text
//!  client  {"type":"input","data":"ls\r"}   {"type":"resize","rows":24,"cols":80}
//!  server  {"type":"output","data":".."}    {"type":"error","data":".."} and the end
//! ```
//!
//! The server's first message is an empty output: existing clients drop the first message.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_agent_protocol::exec::Size;
use kohakuriver_agent_protocol::session::{Attach, SessionInput, SessionOutput};
use kohakuriver_agent_protocol::{FrameReader, write};
use kohakuriver_runner_link::protocol::StreamTarget;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use super::socket::{self, NORMAL, REFUSED, Sender, TROUBLE};
use crate::access::Caller;
use crate::host::App;
use crate::sessions::open::{OpenSession, admit, open_session};
use crate::sessions::streams::InstanceStream;

/// How long a terminal waits for its size: pages send it at once, and other clients should not wait
/// for their output.
const SIZE_LIMIT: Duration = Duration::from_millis(250);
const DEFAULT_SIZE: Size = Size { rows: 24, cols: 80 };
const TERM: &str = "xterm-256color";
const BUFFER: usize = 16 * 1024;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/ws/task/{task}/terminal", get(json_terminal))
        .route("/ws/task/{task}/session", get(session))
}

/// How to join a session. Without any: a new shell that ends with the socket.
#[derive(Debug, Deserialize)]
struct TerminalQuery {
    session: Option<String>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum FromClient {
    Input { data: String },
    Resize { rows: i64, cols: i64 },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
enum ToClient<'a> {
    Output(&'a str),
    Error(&'a str),
}

impl ToClient<'_> {
    fn message(&self) -> Message {
        // Text in an object always serializes.
        Message::text(serde_json::to_string(self).unwrap_or_default())
    }
}

async fn session(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, super::error::ApiError> {
    // Before the upgrade, so that clients get an ordinary error response.
    let OpenSession { stream, guard } =
        open_session(&app, &caller, &text, StreamTarget::Session).await?;
    socket::serve(app, &caller, upgrade, async move |_, socket| {
        guard.during(carry(socket, stream)).await;
    })
}

/// Converts binary messages to bytes and back, regardless of their boundaries.
async fn carry(socket: WebSocket, stream: InstanceStream) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_agent, mut to_agent) = split(stream);
    let upward = async {
        while let Some(message) = socket::receive(&mut from_client).await {
            if let Message::Binary(data) = message
                && (to_agent.write_all(&data).await.is_err() || to_agent.flush().await.is_err())
            {
                break;
            }
        }
    };
    let downward = async {
        let mut pings = socket::pings();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER);
            let message = tokio::select! {
                read = from_agent.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => Message::Binary(buffer.split().freeze()),
                },
                _ = pings.tick() => Message::Ping(Bytes::new()),
            };
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        socket::close(&mut to_client, NORMAL, "").await;
    };
    tokio::select! {
        () = upward => {}
        () = downward => {}
    }
}

async fn json_terminal(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    Query(query): Query<TerminalQuery>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, super::error::ApiError> {
    admit(&app, &caller, &text).await?;
    let who = caller.clone();
    socket::serve(app, &who, upgrade, async move |app, socket| {
        serve_json(&app, &caller, &text, query, socket).await;
    })
}

async fn serve_json(
    app: &App,
    caller: &Caller,
    text: &str,
    query: TerminalQuery,
    mut socket: WebSocket,
) {
    let opened = open_session(app, caller, text, StreamTarget::Session).await;
    let OpenSession { stream, guard } = match opened {
        Ok(entered) => entered,
        Err(error) => {
            let code = if error.is_refusal() { REFUSED } else { TROUBLE };
            return refuse(&mut socket, code, &error.line()).await;
        }
    };
    let first = match timeout(SIZE_LIMIT, socket::receive(&mut socket)).await {
        Ok(None) => return,
        Ok(Some(message)) => parse(&message),
        Err(_) => None,
    };
    let (size, first) = match first {
        Some(FromClient::Resize { rows, cols }) => (window(rows, cols), None),
        other => (DEFAULT_SIZE, other),
    };
    let (from_agent, mut to_agent) = split(stream);
    let attach = SessionInput::Attach(Attach {
        ephemeral: query.session.is_none(),
        session: query.session,
        read_only: query.read_only,
        size,
        term: TERM.to_owned(),
        client: rand::random(),
        ..Attach::default()
    });
    if write(&mut to_agent, &attach).await.is_err()
        || socket.send(ToClient::Output("").message()).await.is_err()
    {
        return;
    }
    let (mut to_client, mut from_client) = socket.split();
    let upward = async {
        let mut position = 0;
        let mut next = first;
        loop {
            let input = match next.take() {
                Some(FromClient::Input { data }) => {
                    let begins = position;
                    position += data.len() as u64;
                    SessionInput::Input { position: begins, data: data.into() }
                }
                Some(FromClient::Resize { rows, cols }) => SessionInput::Resize(window(rows, cols)),
                None => match socket::receive(&mut from_client).await {
                    Some(message) => {
                        next = parse(&message);
                        continue;
                    }
                    None => break,
                },
            };
            if write(&mut to_agent, &input).await.is_err() {
                break;
            }
        }
        let _: std::io::Result<()> = hang_up(&mut to_agent).await;
    };
    tokio::select! {
        () = upward => {}
        () = downward(FrameReader::new(from_agent, &[]), &mut to_client) => {}
        () = guard.revoked() => {}
    }
}

async fn hang_up(to_agent: &mut WriteHalf<InstanceStream>) -> std::io::Result<()> {
    write(to_agent, &SessionInput::Hangup).await?;
    to_agent.shutdown().await
}

async fn downward(
    mut reader: FrameReader<ReadHalf<InstanceStream>, SessionOutput>,
    to_client: &mut Sender,
) {
    let mut pings = socket::pings();
    let mut text = Utf8::default();
    loop {
        let next = tokio::select! {
            next = reader.next() => next,
            _ = pings.tick() => {
                if to_client.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let (code, why) = match next {
            Ok(Some(SessionOutput::Output(data) | SessionOutput::Screen(data))) => {
                // As text in JSON it may grow sixfold.
                for piece in data.chunks(BUFFER) {
                    let whole = text.take(piece);
                    if !whole.is_empty()
                        && to_client.send(ToClient::Output(&whole).message()).await.is_err()
                    {
                        return;
                    }
                }
                continue;
            }
            Ok(Some(
                SessionOutput::Attached(_)
                | SessionOutput::InputTaken(_)
                | SessionOutput::Skipped(_)
                | SessionOutput::List(_),
            )) => continue,
            Ok(Some(SessionOutput::Ended(_))) => (NORMAL, String::new()),
            Ok(Some(SessionOutput::Failed(failed))) => (TROUBLE, failed.message),
            Ok(None) | Err(_) => (TROUBLE, "the connection to the VPS was lost".to_owned()),
        };
        if !why.is_empty() {
            let _ = to_client.send(ToClient::Error(&why).message()).await;
        }
        return socket::close(to_client, code, &why).await;
    }
}

async fn refuse(socket: &mut WebSocket, code: u16, why: &str) {
    // Existing clients drop the first message and would never display the reason.
    let _ = socket.send(ToClient::Output("").message()).await;
    let _ = socket.send(ToClient::Error(why).message()).await;
    socket::close(socket, code, why).await;
}

fn parse(message: &Message) -> Option<FromClient> {
    match message {
        Message::Text(text) => serde_json::from_str(text).ok(),
        Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_) => None,
    }
}

fn window(rows: i64, cols: i64) -> Size {
    let narrow = |value: i64| u16::try_from(value.max(0)).unwrap_or(u16::MAX);
    Size { rows: narrow(rows), cols: narrow(cols) }
}

/// Decodes bytes to text, where a message may end inside a character.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character: at most three bytes.
    cut: Vec<u8>,
}

impl Utf8 {
    fn take(&mut self, data: &[u8]) -> String {
        self.cut.extend_from_slice(data);
        let keep = incomplete_end(&self.cut);
        let rest = self.cut.split_off(self.cut.len() - keep);
        let whole = std::mem::replace(&mut self.cut, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }
}

/// Returns how many bytes at the end may be the beginning of a character.
fn incomplete_end(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let Some(start) = (tail..bytes.len()).rev().find(|at| bytes[*at] & 0xC0 != 0x80) else {
        return 0;
    };
    let wanted = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    let there = bytes.len() - start;
    if there < wanted { there } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_split_anywhere_are_decoded_whole() {
        let text = "aé漢🦀z\u{301}";
        for piece in 1..7 {
            let mut decoder = Utf8::default();
            let out: String =
                text.as_bytes().chunks(piece).map(|chunk| decoder.take(chunk)).collect();
            assert_eq!(out, text, "in pieces of {piece}");
        }
    }

    #[test]
    fn invalid_utf8_is_replaced_and_not_buffered() {
        let mut decoder = Utf8::default();
        assert_eq!(decoder.take(b"a\xff\x80b"), "a\u{fffd}\u{fffd}b");
        assert_eq!(decoder.take(b"\xe6\xbc"), "");
        assert_eq!(decoder.take(b"x"), "\u{fffd}x");
        assert!(decoder.cut.is_empty());
    }

    #[test]
    fn terminal_size_is_limited_to_kernel_range() {
        assert_eq!(window(0, 65535), Size { rows: 0, cols: 65535 });
        assert_eq!(window(-5, 1 << 40), Size { rows: 0, cols: 65535 });
    }
}
