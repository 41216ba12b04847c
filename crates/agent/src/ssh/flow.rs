//! Moving bytes between a channel and a file descriptor, never beyond the peer's window nor ours.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::window::Window;

const BLOCK: usize = 64 * 1024;
/// Pieces below this are put together, or a client that sends single bytes would make its window cost a hundred times
/// its size.
const SMALL: usize = 4 * 1024;
/// After the main child has ended, others may still hold its output open: how long their silence is waited out.
const QUIET: Duration = Duration::from_millis(500);

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
        if buffer.capacity() < BLOCK / 2 {
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
        let is_bulk = data.len() >= SMALL;
        let sent = match extended {
            None => channel.data_bytes(data).await,
            Some(kind) => channel.extended_data_bytes(kind, data).await,
        };
        if sent.is_err() {
            return;
        }
        if is_bulk {
            // This goes out before more is read, and meanwhile the pipe fills: fewer and larger packets, for which
            // everybody on the way is woken less often.
            yield_now().await;
        }
    }
}

async fn fallen_silent(ended: &mut watch::Receiver<bool>) {
    // A dropped sender is an end too.
    let _ = ended.wait_for(|ended| *ended).await;
    sleep(QUIET).await;
}

/// Pieces of bytes in the order they came.
#[derive(Debug, Default)]
struct Queue(VecDeque<BytesMut>);

impl Queue {
    fn push(&mut self, data: Bytes) {
        match self.0.back_mut() {
            Some(last) if data.len() + last.len() <= SMALL => last.extend_from_slice(&data),
            Some(_) | None if data.is_empty() => {}
            Some(_) | None => self.0.push_back(data.into()),
        }
    }

    /// Writes some of what there is; may be dropped at any await without losing bytes.
    async fn write_some<W: AsyncWrite + Unpin>(&mut self, target: &mut W) -> io::Result<usize> {
        let Some(front) = self.0.front_mut() else {
            return Ok(0);
        };
        let written = target.write(front).await?;
        if written == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        front.advance(written);
        if front.is_empty() {
            self.0.pop_front();
        }
        Ok(written)
    }
}

/// Bytes received on a channel and not yet accepted by whom they are for. The window bounds them.
#[derive(Debug)]
pub(super) struct Inbound {
    queue: Queue,
    window: Window,
    open: bool,
}

impl Inbound {
    pub fn new(window: Window) -> Self {
        Self { queue: Queue::default(), window, open: true }
    }

    pub fn push(&mut self, data: Bytes) {
        if self.open {
            self.queue.push(data);
        } else {
            self.window.consume(data.len());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.0.is_empty()
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Moves as much of the queue to `space` as fits.
    pub fn take(&mut self, space: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < space.len()
            && let Some(front) = self.queue.0.front_mut()
        {
            let count = front.len().min(space.len() - taken);
            front.copy_to_slice(&mut space[taken..taken + count]);
            taken += count;
            if front.is_empty() {
                self.queue.0.pop_front();
            }
        }
        self.window.consume(taken);
        taken
    }

    /// Drops what there is and what else arrives, as a broken pipe would.
    pub fn close(&mut self) {
        self.open = false;
        let dropped = self.queue.0.drain(..).map(|piece| piece.len()).sum();
        self.window.consume(dropped);
    }

    /// Writes some of the queue; may be dropped at any await without losing bytes.
    pub async fn write_some<W: AsyncWrite + Unpin>(&mut self, target: &mut W) -> io::Result<()> {
        let written = self.queue.write_some(target).await?;
        self.window.consume(written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queued_bytes_leave_in_order_and_small_pieces_are_put_together() {
        let mut queue = Queue::default();
        for _ in 0..SMALL {
            queue.push(Bytes::from_static(b"ab"));
        }
        queue.push(Bytes::new());
        assert_eq!(queue.0.len(), 2);
        queue.push(vec![b'c'; SMALL + 1].into());
        queue.push(Bytes::from_static(b"d"));
        let mut out = Vec::new();
        while !queue.0.is_empty() {
            queue.write_some(&mut out).await.unwrap();
        }
        let expected = [b"ab".repeat(SMALL), vec![b'c'; SMALL + 1], b"d".to_vec()].concat();
        assert!(out == expected);
    }
}
