//! Copying bytes both ways until both sides are done.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, split};

use crate::pooled_buf::PooledBuf;

/// Copies both ways, keeps half-closes, and returns the bytes that went `a -> b` and `b -> a`.
///
/// # Errors
/// The first of either side; what the other direction carried is cut then.
pub async fn relay<A, B>(a: A, b: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((mut a_read, mut a_write), (mut b_read, mut b_write)) = (split(a), split(b));
    tokio::try_join!(copy(&mut a_read, &mut b_write), copy(&mut b_read, &mut a_write))
}

/// Copies until the end of `from`, which becomes an end of `to`.
///
/// # Errors
/// Either side's own.
pub async fn copy<R, W>(from: &mut R, to: &mut W) -> io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Buffer::default();
    loop {
        let read = poll_fn(|cx| buffer.poll_fill(cx, from, to)).await?;
        if read == 0 {
            poll_fn(|cx| Pin::new(&mut *to).poll_shutdown(cx)).await?;
            return Ok(buffer.copied);
        }
        poll_fn(|cx| buffer.poll_drain(cx, to)).await?;
    }
}

/// Holds memory only while there are bytes in it: a thousand idle connections cost none.
#[derive(Default)]
struct Buffer {
    pooled_buf: Option<PooledBuf>,
    start: usize,
    end: usize,
    copied: u64,
    unflushed: bool,
}

impl Buffer {
    fn poll_fill<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut pooled_buf = self.pooled_buf.take().unwrap_or_else(PooledBuf::take);
        let mut space = ReadBuf::new(&mut pooled_buf);
        let polled = Pin::new(from).poll_read(cx, &mut space);
        let read = space.filled().len();
        match polled {
            Poll::Ready(Ok(())) => {
                self.pooled_buf = Some(pooled_buf);
                (self.start, self.end) = (0, read);
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                drop(pooled_buf);
                if self.unflushed {
                    // Ready or not, the flush is under way; its end needs no waiting for.
                    self.unflushed = Pin::new(to).poll_flush(cx)?.is_pending();
                }
                Poll::Pending
            }
        }
    }

    fn poll_drain<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let bytes = self.pooled_buf.as_deref().unwrap_or_default();
            let left = bytes.get(self.start..self.end).unwrap_or_default();
            let written = ready!(Pin::new(&mut *to).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
            self.copied += written as u64;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn both_directions_arrive_whole_and_each_ends_by_itself() {
        let (mut left, a) = duplex(999);
        let (mut right, b) = duplex(5000);
        let relaying = tokio::spawn(relay(a, b));
        let there: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let sent = there.clone();
        let sending = tokio::spawn(async move {
            left.write_all(&sent).await.unwrap();
            left.shutdown().await.unwrap();
            let mut back = Vec::new();
            left.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut arrived = Vec::new();
        right.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, there);
        // The other direction is still open.
        right.write_all(b"answer").await.unwrap();
        right.shutdown().await.unwrap();
        assert_eq!(sending.await.unwrap(), b"answer");
        assert_eq!(relaying.await.unwrap().unwrap(), (300_000, 6));
    }
}
