//! Moving bytes between a channel and a file descriptor, never beyond the peer's window.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::sleep;

const BLOCK: usize = 64 * 1024;
/// After the main child has ended, others may still hold its output open: how long their silence is waited out.
const QUIET: Duration = Duration::from_millis(500);
/// What one channel may hold here before its SSH connection is held back.
const MAX_QUEUED: usize = 1024 * 1024;

/// Sends what `source` says until its end, or until it falls silent after `ended` became true.
pub(super) async fn pump<R>(
    mut source: R,
    channel: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
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
        let sent = match extended {
            None => channel.data_bytes(data).await,
            Some(kind) => channel.extended_data_bytes(kind, data).await,
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
#[derive(Debug, Default)]
pub(super) struct Inbound {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

impl Inbound {
    pub fn push(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.bytes += data.len();
            self.queue.push_back(data);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= MAX_QUEUED
    }

    pub fn clear(&mut self) {
        self.queue.clear();
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
        if front.is_empty() {
            self.queue.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queued_bytes_leave_in_order_and_are_counted() {
        let mut inbound = Inbound::default();
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

    #[test]
    fn the_queue_is_full_at_its_bound() {
        let mut inbound = Inbound::default();
        inbound.push(Bytes::from(vec![0; MAX_QUEUED - 1]));
        assert!(!inbound.is_full());
        inbound.push(Bytes::from_static(b"x"));
        assert!(inbound.is_full());
        inbound.clear();
        assert!(inbound.is_empty() && !inbound.is_full());
    }
}
