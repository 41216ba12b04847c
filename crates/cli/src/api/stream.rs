//! Streams into VPSes: upgraded connections, and the WebSockets of terminals.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_net::Prefixed;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::{ASKER, Api, Connection};
use crate::error::CommandError;
use crate::identity;

const PROTOCOL: &str = "kohakuriver-stream";
/// The timeout of an upgrade; the host's timeout for an instance is 15 s.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// The largest body of an error, which is a sentence and a hint.
const LONGEST_REFUSAL: usize = 64 * 1024;

pub type Socket = WebSocketStream<Connection>;

/// An open stream into a VPS. Its first bytes may have arrived with the host's response.
pub type Stream = Prefixed<Connection>;

impl Api {
    /// Opens a stream to `target` in the VPS.
    pub async fn stream(&self, vps: &str, target: &StreamTarget) -> Result<Stream, CommandError> {
        let path = format!("/api/vps/{vps}/stream?{}", query(target));
        let slow = || self.not_reached("no response in time");
        timeout(OPEN_LIMIT, self.upgrade(&path)).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn upgrade(&self, path: &str) -> Result<Stream, CommandError> {
        let (connection, way) = self.connect().await?;
        let broken = |error: hyper::Error| self.not_reached(&super::innermost(&error));
        let (mut sender, driver) =
            http1::handshake(TokioIo::new(connection)).await.map_err(broken)?;
        let driver = tokio::spawn(driver.with_upgrades());
        let mut request = Request::get(path)
            .header(HOST, &way.authority)
            .header(ASKER, identity::asker())
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL);
        if let Some(bearer) = &way.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| CommandError::request(format!("cannot ask the host: {error}")))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_REFUSAL).collect().await;
            driver.abort();
            return Err(self.refusal(status, &body.map(|b| b.to_bytes()).unwrap_or_default()));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
        match upgraded.downcast::<TokioIo<Connection>>() {
            Ok(parts) => Ok(Prefixed::new(parts.io.into_inner(), parts.read_buf)),
            Err(_) => {
                Err(CommandError::request("the connection to the host is of an unknown kind"))
            }
        }
    }

    /// Opens the WebSocket of terminals in the VPS.
    pub async fn session_socket(&self, vps: &str) -> Result<Socket, CommandError> {
        let attempt = async {
            let (connection, way) = self.connect().await?;
            let mut request = format!("ws://{}/ws/task/{vps}/session", way.authority)
                .into_client_request()
                .map_err(|error| CommandError::request(format!("cannot ask the host: {error}")))?;
            if let Ok(asker) = identity::asker().parse() {
                request.headers_mut().insert(ASKER, asker);
            }
            if let Some(bearer) = &way.bearer {
                request.headers_mut().insert(AUTHORIZATION, bearer.clone());
            }
            let config =
                WebSocketConfig::default().read_buffer_size(16 * 1024).write_buffer_size(0);
            match tokio_tungstenite::client_async_with_config(request, connection, Some(config))
                .await
            {
                Ok((socket, _)) => Ok(socket),
                Err(SocketError::Http(answer)) => {
                    Err(self.refusal(answer.status(), answer.body().as_deref().unwrap_or_default()))
                }
                Err(error) => Err(self.not_reached(&super::innermost(&error))),
            }
        };
        let slow = || self.not_reached("no response in time");
        timeout(OPEN_LIMIT, attempt).await.unwrap_or_else(|_| Err(slow()))
    }
}

fn query(target: &StreamTarget) -> String {
    match target {
        StreamTarget::Ssh => "target=ssh".to_owned(),
        StreamTarget::Tcp { port } => format!("target=tcp&port={port}"),
        StreamTarget::Udp { port } => format!("target=udp&port={port}"),
        StreamTarget::Exec => "target=exec".to_owned(),
        StreamTarget::Attach => "target=attach".to_owned(),
        StreamTarget::Session => "target=session".to_owned(),
        StreamTarget::Files => "target=files".to_owned(),
        StreamTarget::Watch => "target=watch".to_owned(),
        StreamTarget::Settings => "target=settings".to_owned(),
        StreamTarget::Ping => "target=ping".to_owned(),
    }
}
