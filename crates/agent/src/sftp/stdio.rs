use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Standard input and output as one stream, read and written in place.
///
/// It blocks the runtime on purpose: this process has nothing else to do, and needs no threads this way.
#[derive(Debug)]
pub(super) struct Stdio {
    /// Told the first error; dropped without one when the stream is.
    failed: Option<oneshot::Sender<io::Error>>,
    over: bool,
}

impl Stdio {
    pub fn new(failed: oneshot::Sender<io::Error>) -> Self {
        Self { failed: Some(failed), over: false }
    }

    /// Turns an error into the end of the stream: the library would go on after anything else.
    fn fail(&mut self, error: Errno) {
        self.over = true;
        if error != Errno::EPIPE
            && let Some(failed) = self.failed.take()
        {
            let _ = failed.send(error.into());
        }
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.over {
            match nix::unistd::read(io::stdin(), buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(error) => self.fail(error),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match nix::unistd::write(io::stdout(), buf) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.fail(error);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
