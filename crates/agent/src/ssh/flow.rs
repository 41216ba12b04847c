//! Moving bytes between a channel and a file descriptor, never beyond the peer's window nor ours.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use kohakuriver_net::BufList;
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::yield_now;

use super::window::Window;

const BLOCK: usize = 64 * 1024;
/// Output larger than this is likely to be followed by more.
const SMALL: usize = 4 * 1024;

/// Sends what `source` says until its end.
pub(super) async fn pump<R>(mut source: R, channel: &ChannelWriteHalf<Msg>, extended: Option<u32>)
where
    R: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < BLOCK / 2 {
            buffer.reserve(BLOCK);
        }
        match source.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
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

/// Bytes received on a channel and not yet accepted by whom they are for. The window bounds them.
#[derive(Debug)]
pub(super) struct Inbound {
    queue: BufList,
    window: Window,
    open: bool,
}

impl Inbound {
    pub fn new(window: Window) -> Self {
        Self { queue: BufList::default(), window, open: true }
    }

    pub fn push(&mut self, data: Bytes) {
        if self.open {
            self.queue.push(data);
        } else {
            self.window.consume(data.len());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Moves as much of the queue to `space` as fits.
    pub fn take(&mut self, space: &mut [u8]) -> usize {
        let taken = space.len().min(self.queue.remaining());
        self.queue.copy_to_slice(&mut space[..taken]);
        self.window.consume(taken);
        taken
    }

    /// Drops what there is and what else arrives, as a broken pipe would.
    pub fn close(&mut self) {
        self.open = false;
        self.window.consume(self.queue.clear());
    }

    /// Writes some of the queue; may be dropped at any await without losing bytes.
    pub async fn write_some<W: AsyncWrite + Unpin>(&mut self, target: &mut W) -> io::Result<()> {
        let written = self.queue.write_some(target).await?;
        self.window.consume(written);
        Ok(())
    }
}
