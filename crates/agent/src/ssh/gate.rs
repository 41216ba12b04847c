use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A connection that fails once the deadline passes before its peer has logged in, or when it is cut.
///
/// The session runs in a task of the SSH library that nothing can abort from outside; failing its stream ends it.
#[derive(Debug)]
pub(super) struct Gate<S> {
    stream: S,
    /// The bytes already read from the stream.
    taken: Bytes,
    logged_in: Arc<AtomicBool>,
    deadline: Option<Pin<Box<Sleep>>>,
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<S> Gate<S> {
    pub fn new(stream: S, taken: Bytes, deadline: Duration, logged_in: Arc<AtomicBool>) -> Self {
        Self { stream, taken, logged_in, deadline: Some(Box::pin(sleep(deadline))), cut: None }
    }

    /// Has it fail when this is cancelled.
    pub fn cut_by(self, cut: CancellationToken) -> Self {
        Self { cut: Some(Box::pin(cut.cancelled_owned())), ..self }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(cut) = &mut self.cut
            && cut.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
        }
        let Some(deadline) = &mut self.deadline else {
            return Ok(());
        };
        if self.logged_in.load(Ordering::Relaxed) {
            self.deadline = None;
            return Ok(());
        }
        if deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if !self.taken.is_empty() {
            let count = self.taken.len().min(buf.remaining());
            buf.put_slice(&self.taken.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_cut_at_the_deadline_and_a_logged_in_one_is_not() {
        let deadline = Duration::from_millis(20);
        let (_peer, stream) = duplex(64);
        let logged_in = Arc::new(AtomicBool::new(false));
        let mut gate = Gate::new(stream, Bytes::new(), deadline, Arc::clone(&logged_in));
        let error = gate.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (_peer, stream) = duplex(64);
        logged_in.store(true, Ordering::Relaxed);
        let mut gate = Gate::new(stream, Bytes::new(), deadline, logged_in);
        let waited = tokio::time::timeout(10 * deadline, gate.read_u8()).await;
        assert!(waited.is_err(), "still open");
    }
}
