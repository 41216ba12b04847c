//! Moving bytes between a channel and a file descriptor, never beyond the peer's window.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::intake::Intake;

const BLOCK: usize = 64 * 1024;
/// After the main child has ended, others may still hold its output open: how long their silence is waited out.
const QUIET: Duration = Duration::from_millis(500);

/// Sends what `source` says until its end, or until it falls silent after `ended` became true.
pub(super) async fn pump<R>(
    mut source: R,
    channel: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
    intake: &Intake,
    mut ended: watch::Receiver<bool>,
) where
    R: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < BLOCK / 4 {
            buffer.reserve(BLOCK);
        }
        tokio::select! {
            biased;
            read = source.read_buf(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            () = fallen_silent(&mut ended) => return,
        }
        let data = buffer.split().freeze();
        let send = async {
            match extended {
                None => channel.data_bytes(data).await,
                Some(kind) => channel.extended_data_bytes(kind, data).await,
            }
        };
        tokio::pin!(send);
        let sent = tokio::select! {
            biased;
            sent = &mut send => sent,
            () = std::future::ready(()) => {
                let _starved = intake.starve();
                send.await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn fallen_silent(ended: &mut watch::Receiver<bool>) {
    // A dropped sender is an end too.
    let _ = ended.wait_for(|ended| *ended).await;
    sleep(QUIET).await;
}

/// Bytes received on a channel and not yet accepted by whom they are for.
#[derive(Debug)]
pub(super) struct Inbound {
    queue: VecDeque<Bytes>,
    bytes: usize,
    intake: Arc<Intake>,
}

impl Inbound {
    pub fn new(intake: &Arc<Intake>) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, intake: Arc::clone(intake) }
    }

    pub fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.bytes += data.len();
            self.intake.add(data.len());
            self.queue.push_back(data);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn clear(&mut self) {
        self.queue.clear();
        self.intake.remove(self.bytes);
        self.bytes = 0;
    }

    /// Writes some of the queue; may be dropped at any await without losing bytes.
    pub async fn write_some<W: AsyncWrite + Unpin>(&mut self, target: &mut W) -> io::Result<()> {
        let Some(front) = self.queue.front_mut() else {
            return Ok(());
        };
        let written = target.write(front).await?;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        front.advance(written);
        self.bytes -= written;
        self.intake.remove(written);
        if front.is_empty() {
            self.queue.pop_front();
        }
        Ok(())
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queued_bytes_leave_in_order_and_are_counted_until_then() {
        let mut inbound = Inbound::new(&Arc::default());
        inbound.push(Bytes::from_static(b"ab"));
        inbound.push(Bytes::new());
        inbound.push(Bytes::from_static(b"cd"));
        let mut out = Vec::new();
        while !inbound.is_empty() {
            inbound.write_some(&mut out).await.unwrap();
        }
        assert_eq!(out, b"abcd");
        assert_eq!(inbound.bytes, 0);
    }
}
