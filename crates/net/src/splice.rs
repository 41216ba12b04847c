//! Copying between two sockets of this machine without the bytes passing through this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;
use std::os::fd::AsRawFd;
use tokio::io::Interest;

use crate::Socket;

/// How much may lie in a pipe: larger means fewer turns.
const PIPE_BYTES: usize = 512 * 1024;
/// Empty pipes kept for the next direction that has something to say.
const SPARE_PIPES: usize = 32;

/// Copies both ways, keeps half-closes, and returns the bytes that went `a -> b` and `b -> a`.
///
/// # Errors
/// The first of either side; what the other direction carried is cut then.
pub async fn relay_sockets(a: &Socket, b: &Socket) -> io::Result<(u64, u64)> {
    tokio::try_join!(copy(a, b), copy(b, a))
}

async fn copy(from: &Socket, to: &Socket) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        // An idle direction holds no pipe.
        from.ready(Interest::READABLE).await?;
        let pipe = Pipe::take()?;
        loop {
            let moved = from.try_io(Interest::READABLE, || {
                move_some(from.as_fd(), pipe.write.as_fd(), PIPE_BYTES)
            });
            let mut held = match moved {
                Ok(0) => {
                    shutdown(to.as_fd().as_raw_fd(), Shutdown::Write).or_else(gone_already)?;
                    return Ok(copied);
                }
                Ok(moved) => moved,
                // The pipe is empty here, so it is the socket that has nothing more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            copied += held as u64;
            while held > 0 {
                let moved = to
                    .try_io(Interest::WRITABLE, || move_some(pipe.read.as_fd(), to.as_fd(), held));
                match moved {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(moved) => held -= moved,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        to.ready(Interest::WRITABLE).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        pipe.give_back();
    }
}

fn gone_already(error: nix::errno::Errno) -> Result<(), nix::errno::Errno> {
    if error == nix::errno::Errno::ENOTCONN { Ok(()) } else { Err(error) }
}

fn move_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

/// A pipe with nothing in it, or with bytes that are on their way. One that is dropped is closed,
/// and what was in it is gone.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

static SPARE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Beyond a user's limit the usual size serves as well.
        let size = i32::try_from(PIPE_BYTES).unwrap_or(i32::MAX);
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(size));
        Ok(Self { read, write })
    }

    /// Only for an empty one.
    fn give_back(self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_PIPES {
            spare.push(self);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    use super::*;

    #[tokio::test]
    async fn bytes_arrive_whole_between_kinds_of_sockets_and_each_direction_ends_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (a, _) = listener.accept().await.unwrap();
        let (b, mut unix) = UnixStream::pair().unwrap();
        let relaying = tokio::spawn(async move { relay_sockets(&a.into(), &b.into()).await });
        let there: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let sent = there.clone();
        let sending = tokio::spawn(async move {
            tcp.write_all(&sent).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut back = Vec::new();
            tcp.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut arrived = Vec::new();
        unix.read_to_end(&mut arrived).await.unwrap();
        assert!(arrived == there);
        unix.write_all(b"answer").await.unwrap();
        unix.shutdown().await.unwrap();
        assert_eq!(sending.await.unwrap(), b"answer");
        assert_eq!(relaying.await.unwrap().unwrap(), (5_000_000, 6));
    }

    #[tokio::test]
    async fn a_reader_that_stalls_costs_no_more_than_what_the_kernel_holds() {
        let (mut near, a) = UnixStream::pair().unwrap();
        let (b, _stalled) = UnixStream::pair().unwrap();
        tokio::spawn(async move { relay_sockets(&a.into(), &b.into()).await });
        let endless = async {
            let mut taken = 0usize;
            loop {
                taken += near.write(&[0; 65536]).await.unwrap();
                assert!(taken < 16 * 1024 * 1024, "bytes pile up somewhere");
            }
        };
        let stopped = tokio::time::timeout(std::time::Duration::from_millis(300), endless).await;
        assert!(stopped.is_err());
    }
}
