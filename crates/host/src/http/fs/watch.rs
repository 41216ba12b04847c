//! `/ws/fs/{task}/watch?paths=/a,/b`: notifications of file changes, for pages and existing
//! clients.
//!
//! ```text
//!  server  {"type":"watching","paths":["/a"],"method":"inotify"}
//!          {"type":"change","event":"CREATE","path":"/a/x","is_dir":false}
//!          {"type":"error","message":".."} and the end
//!  client  {"type":"ping"}, answered with {"type":"pong"}
//! ```
//!
//! A client that is slower than the changes gets a change of the watched directories: it lists them
//! again, and no queue grows here.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kohakuriver_agent_protocol::files::{MAX_PATH, Word};
use kohakuriver_agent_protocol::watch::{
    Change, Event, MAX_PATHS, Method, WatchInput, WatchOutput, Watching,
};
use kohakuriver_agent_protocol::{FrameError, FrameReader, write};
use kohakuriver_runner_link::protocol::StreamTarget;
use serde::{Deserialize, Serialize};
use tokio::io::{ReadHalf, split};
use tokio::sync::mpsc;

use super::super::error::ApiError;
use super::super::socket::{self, NORMAL, Sender};
use super::convert;
use crate::access::Caller;
use crate::host::App;
use crate::sessions::open::{OpenSession, admit, open_session};
use crate::sessions::streams::InstanceStream;

const TOO_MUCH: &str = "the VPS's agent sent an oversized reply";
/// Pings that wait for their pong; a client that sends more at once gets fewer replies.
const PONGS: usize = 4;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/ws/fs/{task}/watch", get(watch))
}

#[derive(Debug, Deserialize)]
struct WatchQuery {
    /// Separated by commas.
    #[serde(default = "usual")]
    paths: String,
}

fn usual() -> String {
    "/shared,/local_temp".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum FromClient {
    Ping,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToClient {
    Watching {
        paths: Vec<String>,
        method: Method,
        #[serde(skip_serializing_if = "Option::is_none")]
        interval: Option<f64>,
    },
    Change {
        event: Event,
        path: String,
        is_dir: bool,
    },
    Error {
        message: String,
    },
    Pong,
}

impl ToClient {
    fn message(&self) -> Message {
        // Text in an object always serializes.
        Message::text(serde_json::to_string(self).unwrap_or_default())
    }
}

async fn watch(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    Query(query): Query<WatchQuery>,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    admit(&app, &caller, &text).await?;
    let who = caller.clone();
    socket::serve(app, &who, upgrade, async move |app, socket| {
        serve(&app, &caller, &text, &query.paths, socket).await;
    })
}

async fn serve(app: &App, caller: &Caller, text: &str, paths: &str, socket: WebSocket) {
    let (mut to_client, mut from_client) = socket.split();
    let OpenSession { stream, guard } =
        match open_session(app, caller, text, StreamTarget::Watch).await {
            Ok(entered) => entered,
            Err(error) => return end(&mut to_client, error.line()).await,
        };
    let (from_agent, mut to_agent) = split(stream);
    let paths = paths.split(',').map(str::trim).filter(|path| !path.is_empty());
    let start = WatchInput::Start { paths: paths.map(Word::from).collect() };
    if write(&mut to_agent, &start).await.is_err() {
        return end(&mut to_client, "the connection to the VPS was lost".to_owned()).await;
    }
    let (pong, pongs) = mpsc::channel(PONGS);
    let upward = async {
        while let Some(message) = socket::receive(&mut from_client).await {
            if let Message::Text(text) = message
                && matches!(serde_json::from_str(&text), Ok(FromClient::Ping))
            {
                let _ = pong.try_send(());
            }
        }
    };
    tokio::select! {
        () = upward => {}
        () = downward(FrameReader::new(from_agent, &[]), pongs, &mut to_client) => {}
        () = guard.revoked() => {}
    }
}

async fn downward(
    mut news: FrameReader<ReadHalf<InstanceStream>, WatchOutput>,
    mut pongs: mpsc::Receiver<()>,
    to_client: &mut Sender,
) {
    let mut pings = socket::pings();
    let mut watched = Vec::new();
    loop {
        let messages = tokio::select! {
            next = news.next() => match translate(next, &mut watched) {
                Ok(messages) => messages,
                Err(message) => return end(to_client, message).await,
            },
            Some(()) = pongs.recv() => vec![ToClient::Pong.message()],
            _ = pings.tick() => vec![Message::Ping(Bytes::new())],
        };
        for message in messages {
            if to_client.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the client's messages, or the error to end with.
fn translate(
    next: Result<Option<WatchOutput>, FrameError>,
    watched: &mut Vec<String>,
) -> Result<Vec<Message>, String> {
    match next {
        Ok(Some(WatchOutput::Watching(Watching { ref paths, .. })))
            if paths.len() > MAX_PATHS || !paths.iter().all(is_path) =>
        {
            Err(TOO_MUCH.to_owned())
        }
        Ok(Some(WatchOutput::Change(Change { ref path, .. }))) if !is_path(path) => {
            Err(TOO_MUCH.to_owned())
        }
        Ok(Some(WatchOutput::Watching(Watching { paths, method, interval_ms }))) => {
            *watched = paths.into_iter().map(convert::text).collect();
            let interval = interval_ms.map(|ms| f64::from(ms) / 1000.0);
            Ok(vec![ToClient::Watching { paths: watched.clone(), method, interval }.message()])
        }
        Ok(Some(WatchOutput::Change(Change { event, path, is_dir }))) => {
            Ok(vec![ToClient::Change { event, path: convert::text(path), is_dir }.message()])
        }
        Ok(Some(WatchOutput::Lost)) => {
            let change = |path: &String| ToClient::Change {
                event: Event::Modify,
                path: path.clone(),
                is_dir: true,
            };
            Ok(watched.iter().map(|path| change(path).message()).collect())
        }
        Ok(Some(WatchOutput::Failed(failed))) => Err(failed.message),
        Ok(None) | Err(_) => Err("the connection to the VPS was lost".to_owned()),
    }
}

/// Checks that a filesystem can have the path; root in the VPS may reply in the agent's place.
fn is_path(word: &Word) -> bool {
    word.bytes() <= MAX_PATH
}

/// Sends the error and closes. After this close code existing clients do not reconnect.
async fn end(to_client: &mut Sender, message: String) {
    let _ = to_client.send(ToClient::Error { message }.message()).await;
    socket::close(to_client, NORMAL, "").await;
}
