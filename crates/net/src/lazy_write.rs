//! A socket that registers for writability only while its send buffer is full.
//!
//! The runtime's own sockets ask the kernel about both directions for as long as they live. A unix socket has news
//! about writing each time its peer takes a message, so the sender is woken once more for nothing: in an exchange of
//! small messages that is every second wake-up. Here the kernel is asked about writing only while the buffer is full.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, sendmsg, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::coalesce::Coalesce;
use crate::{DetachedSocket, Socket};

/// After this many writes that did not block, the kernel is not asked any more.
const ENOUGH_WRITES: u8 = 16;

/// A connected stream socket, of either kind.
#[derive(Debug)]
pub struct LazyWriteSocket {
    reader: Reader,
    writer: Writer,
    coalesce: Option<Coalesce>,
}

impl LazyWriteSocket {
    /// Sleeps for a tenth of a millisecond once a transfer is drained: more arrives at once then, for less processor
    /// time. Blocks the reading thread, which must serve this connection alone.
    #[must_use]
    pub fn coalescing(self) -> Self {
        Self { coalesce: Some(Coalesce::default()), ..self }
    }

    /// Moves it to the runtime of the caller.
    ///
    /// # Errors
    /// That runtime does not take it.
    pub fn moved(self) -> io::Result<Self> {
        Self::of(self.reader.0.into_inner())
    }

    fn of(fd: Arc<OwnedFd>) -> io::Result<Self> {
        let reader = Reader(watch(Arc::clone(&fd), Interest::READABLE)?);
        Ok(Self { reader, writer: Writer { fd, asked: None, had_room: 0 }, coalesce: None })
    }

    pub(crate) fn into_split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

/// A socket that can become a [`LazyWriteSocket`].
pub trait IntoLazyWrite {
    /// In the runtime that is to have it.
    ///
    /// # Errors
    /// One runtime cannot deregister it, or the other not take it.
    fn into_lazy_write(self) -> io::Result<LazyWriteSocket>;
}

impl IntoLazyWrite for LazyWriteSocket {
    fn into_lazy_write(self) -> io::Result<LazyWriteSocket> {
        Ok(self)
    }
}

impl IntoLazyWrite for DetachedSocket {
    fn into_lazy_write(self) -> io::Result<LazyWriteSocket> {
        LazyWriteSocket::of(Arc::new(OwnedFd::from(self)))
    }
}

impl IntoLazyWrite for Socket {
    fn into_lazy_write(self) -> io::Result<LazyWriteSocket> {
        self.detach()?.into_lazy_write()
    }
}

impl IntoLazyWrite for TcpStream {
    fn into_lazy_write(self) -> io::Result<LazyWriteSocket> {
        Socket::from(self).into_lazy_write()
    }
}

#[derive(Debug)]
pub(crate) struct Reader(AsyncFd<Arc<OwnedFd>>);

impl Reader {
    pub async fn ready(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Tries something that would block where there is nothing to read.
    pub fn try_io(
        &self,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.0.try_io(Interest::READABLE, |fd| work(fd.as_fd()))
    }

    /// Reads, and tells whether that was all there is: then the next byte is news, and so is the end.
    pub fn try_read(&self, space: &mut [u8]) -> io::Result<usize> {
        let mut read = None;
        let tried = self.try_io(|fd| {
            let count = recv(fd.as_raw_fd(), space, MsgFlags::MSG_DONTWAIT)?;
            read = Some(count);
            if count > 0 && count < space.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        read.map_or(tried, Ok)
    }
}

#[derive(Debug)]
pub(crate) struct Writer {
    fd: Arc<OwnedFd>,
    /// Another name of the same socket, for the kernel's news about writing.
    asked: Option<AsyncFd<OwnedFd>>,
    had_room: u8,
}

impl Writer {
    /// Runs a write as soon as it does not block on a full buffer.
    pub fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        mut work: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match work(self.fd.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.had_room = self.had_room.saturating_add(1);
                    if self.had_room >= ENOUGH_WRITES {
                        self.asked = None;
                    }
                    return Poll::Ready(done);
                }
            }
            self.had_room = 0;
            let asked = match self.asked.take() {
                Some(asked) => asked,
                None => watch(self.fd.try_clone()?, Interest::WRITABLE)?,
            };
            let asked = self.asked.insert(asked);
            // Tried again whatever it says, so nothing is missed by forgetting it.
            ready!(asked.poll_write_ready(cx))?.clear_ready();
        }
    }

    pub fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.poll_io(cx, |fd| Ok(send(fd.as_raw_fd(), bytes, flags)?))
    }

    pub fn poll_send_all_of(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        self.poll_io(cx, |fd| Ok(sendmsg::<()>(fd.as_raw_fd(), slices, &[], flags, None)?))
    }

    /// Ends this direction.
    pub fn end(&self) -> io::Result<()> {
        match shutdown(self.fd.as_raw_fd(), Shutdown::Write) {
            // It is gone already.
            Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[expect(unsafe_code, reason = "the runtime cannot check who owns a descriptor")]
fn watch<T: AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: called with an OwnedFd or an Arc of one, which always return the same descriptor and keep it open until
    // they are dropped, which is after the registration.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl AsyncRead for LazyWriteSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { reader, coalesce, .. } = self.get_mut();
        if let Some(coalesce) = coalesce {
            coalesce.before_read();
        }
        loop {
            ready!(reader.0.poll_read_ready(cx))?.retain_ready();
            match reader.try_read(buf.initialize_unfilled()) {
                Ok(count) => {
                    if let Some(coalesce) = coalesce {
                        coalesce.after_read(count, buf.remaining());
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LazyWriteSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writer.poll_send(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writer.poll_send_all_of(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.writer.end())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    fn pair() -> (LazyWriteSocket, LazyWriteSocket) {
        let (a, b) = UnixStream::pair().unwrap();
        (Socket::from(a).into_lazy_write().unwrap(), Socket::from(b).into_lazy_write().unwrap())
    }

    #[tokio::test]
    async fn what_does_not_fit_is_waited_for_and_arrives_whole() {
        let (mut a, mut b) = pair();
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            a.write_all(&sent).await.unwrap();
            a.shutdown().await.unwrap();
            a
        });
        let mut arrived = Vec::new();
        b.read_to_end(&mut arrived).await.unwrap();
        assert!(arrived == expected);
        let mut a = sending.await.unwrap();
        assert!(a.writer.asked.is_some(), "it was full");
        for _ in 0..=ENOUGH_WRITES {
            b.write_all(b"x").await.unwrap();
            assert_eq!(a.read_u8().await.unwrap(), b'x');
        }
        assert!(b.writer.asked.is_none());
    }

    #[tokio::test]
    async fn coalesced_transfer_and_typed_bytes_behind_it_arrive_whole() {
        let (mut near, far) = pair();
        let mut far = far.coalescing();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            for packet in sent.chunks(32 * 1024) {
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
        drop(near);
        assert_eq!(far.read(&mut arrived).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_end_is_seen_with_the_last_bytes_and_after_them() {
        let (mut a, mut b) = pair();
        a.write_all(b"last").await.unwrap();
        drop(a);
        let mut space = [0; 64];
        assert_eq!(b.read(&mut space).await.unwrap(), 4);
        assert_eq!(b.read(&mut space).await.unwrap(), 0);
        assert_eq!(b.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
