//! A connection to a session: messages in both directions, and keepalive pings.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_agent_protocol::session::{SessionInput, SessionOutput};
use kohakuriver_agent_protocol::{FrameError, Message as _, take};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use crate::api::Socket;

/// Ping interval; a computer that wakes up detects a dead connection by it.
const PULSE: Duration = Duration::from_secs(4);
const SILENCE_LIMIT: Duration = Duration::from_secs(12);

pub struct Link {
    socket: Socket,
    received: BytesMut,
    pulse: Interval,
    heard: Instant,
}

/// The connection is closed, or has carried invalid data.
#[derive(Debug)]
pub struct Lost;

impl From<FrameError> for Lost {
    fn from(error: FrameError) -> Self {
        tracing::debug!(%error, "invalid data in the session's stream");
        Self
    }
}

impl Link {
    pub fn new(socket: Socket) -> Self {
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { socket, received: BytesMut::new(), pulse, heard: Instant::now() }
    }

    pub async fn send(&mut self, message: &SessionInput) -> Result<(), Lost> {
        let mut frame = BytesMut::new();
        message.encode(&mut frame)?;
        // A connection that accepts no data for so long counts as lost.
        let sending = self.socket.send(Message::Binary(frame.freeze()));
        match tokio::time::timeout(SILENCE_LIMIT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Lost),
        }
    }

    /// Receives the next message. Cancel-safe.
    pub async fn receive(&mut self) -> Result<SessionOutput, Lost> {
        loop {
            if let Some(message) = take(&mut self.received)? {
                return Ok(message);
            }
            tokio::select! {
                message = self.socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => {
                        self.heard = Instant::now();
                        self.received.extend_from_slice(&data);
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Lost),
                    Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                        self.heard = Instant::now();
                    }
                },
                _ = self.pulse.tick() => {
                    if self.socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Err(Lost);
                    }
                }
                () = sleep_until(self.heard + SILENCE_LIMIT) => return Err(Lost),
            }
        }
    }

    /// Closes the connection gracefully.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }
}
