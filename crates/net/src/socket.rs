//! A stream socket of either kind: a container's agent is behind a unix socket, a guest's behind
//! a TCP connection, and code that forwards their bytes need not distinguish them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A [`Socket`] that no runtime knows, on its way from one to another.
#[derive(Debug)]
pub enum DetachedSocket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl From<DetachedSocket> for OwnedFd {
    fn from(socket: DetachedSocket) -> Self {
        match socket {
            DetachedSocket::Tcp(stream) => stream.into(),
            DetachedSocket::Unix(stream) => stream.into(),
        }
    }
}

/// The reading half of a [`Socket`].
#[derive(Debug)]
pub enum SocketReader {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
}

/// The writing half of a [`Socket`]; dropping it ends this direction.
#[derive(Debug)]
pub enum SocketWriter {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
}

/// Does the same to whichever is inside.
macro_rules! either {
    ($kind:ident, $value:expr, $inner:ident => $work:expr) => {
        match $value {
            $kind::Tcp($inner) => $work,
            $kind::Unix($inner) => $work,
        }
    };
}

impl Socket {
    pub fn into_split(self) -> (SocketReader, SocketWriter) {
        match self {
            Self::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (SocketReader::Tcp(reader), SocketWriter::Tcp(writer))
            }
            Self::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (SocketReader::Unix(reader), SocketWriter::Unix(writer))
            }
        }
    }

    /// Takes it away from its runtime.
    ///
    /// # Errors
    /// The runtime cannot deregister it.
    pub fn detach(self) -> io::Result<DetachedSocket> {
        Ok(match self {
            Self::Tcp(stream) => DetachedSocket::Tcp(stream.into_std()?),
            Self::Unix(stream) => DetachedSocket::Unix(stream.into_std()?),
        })
    }

    /// The descriptor, blocking, for a process that is to have it.
    ///
    /// # Errors
    /// The runtime cannot deregister it.
    pub fn into_blocking_fd(self) -> io::Result<OwnedFd> {
        Ok(match self.detach()? {
            DetachedSocket::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.into()
            }
            DetachedSocket::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.into()
            }
        })
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(Self, self, stream => stream.as_fd())
    }
}

macro_rules! read_through {
    ($kind:ident) => {
        impl AsyncRead for $kind {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                either!(Self, self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
            }
        }
    };
}

macro_rules! write_through {
    ($kind:ident) => {
        impl AsyncWrite for $kind {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                either!(Self, self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                either!(Self, self.get_mut(), stream => {
                    Pin::new(stream).poll_write_vectored(cx, bufs)
                })
            }

            fn is_write_vectored(&self) -> bool {
                either!(Self, self, stream => stream.is_write_vectored())
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(Self, self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                either!(Self, self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
            }
        }
    };
}

read_through!(Socket);
read_through!(SocketReader);
write_through!(Socket);
write_through!(SocketWriter);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near.into(), listener.accept().await.unwrap().0.into())
    }

    #[tokio::test]
    async fn socket_halves_pass_bytes_and_dropped_writer_ends_stream() {
        let (near, far) = UnixStream::pair().unwrap();
        for (near, far) in [(near.into(), far.into()), tcp_pair().await] {
            let (mut reader, mut writer) = Socket::into_split(near);
            let mut far: Socket = far;
            writer.write_all(b"there").await.unwrap();
            drop(writer);
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "there");
            far.write_all(b"back").await.unwrap();
            drop(far);
            text.clear();
            reader.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "back");
        }
    }
}
