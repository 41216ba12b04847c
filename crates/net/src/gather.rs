//! A reader that lets bytes gather.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much at once is a transfer, not somebody's typing.
const BULK: usize = 16 * 1024;
/// Measured: longer gains nothing, and at 400 MB/s it is what comes in two packets.
const PAUSE: Duration = Duration::from_micros(100);

/// Sleeps a moment when it has read all there was of a transfer.
///
/// A transfer comes in packets. To be woken for each costs more than to handle it, and takes the processor from
/// whoever sends the next one. Blocks its thread, which must be one that serves this connection alone.
#[derive(Debug)]
pub struct Gather<S> {
    stream: S,
    has_read_bulk: bool,
}

impl<S> Gather<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, has_read_bulk: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_read_bulk) {
            thread::sleep(PAUSE);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        // What has filled the buffer left something to read.
        self.has_read_bulk = buf.filled().len() - before >= BULK && buf.remaining() > 0;
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_transfer_and_what_is_typed_behind_it_arrive_whole() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut far = Gather::new(far);
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            for packet in sent.chunks(BULK * 2) {
                near.write_all(packet).await.unwrap();
            }
            near
        });
        let mut arrived = vec![0; expected.len()];
        far.read_exact(&mut arrived).await.unwrap();
        assert!(arrived == expected);
        let mut near = sending.await.unwrap();
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        assert!(!far.has_read_bulk, "typing is not waited for");
        drop(near);
        assert_eq!(far.read(&mut arrived).await.unwrap(), 0);
    }
}
