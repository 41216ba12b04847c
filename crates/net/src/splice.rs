//! Copying between two sockets of this machine: what is much without the bytes passing through this process, what is
//! little with the fewest system calls.
//!
//! ```text
//!  passing --as much as fits--> splicing       splicing --little at once--> passing
//! ```

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::task::coop::consume_budget;

use crate::lazy_write::{IntoLazyWrite, Reader, Writer};
use crate::pooled_buf::PooledBuf;

/// Reads of up to this many bytes are copied rather than spliced.
const SMALL: usize = 16 * 1024;
/// How much may lie in a pipe: larger means fewer turns.
const PIPE_BYTES: usize = 512 * 1024;
/// Empty pipes kept for the next direction that has something to say.
const SPARE_PIPES: usize = 32;

/// Copies both ways, keeps half-closes, and returns the bytes that went `a -> b` and `b -> a`.
///
/// # Errors
/// The first of either side; what the other direction carried is cut then.
pub async fn relay_sockets<A: IntoLazyWrite, B: IntoLazyWrite>(
    a: A,
    b: B,
) -> io::Result<(u64, u64)> {
    let (mut a_read, mut a_write) = a.into_lazy_write()?.into_split();
    let (mut b_read, mut b_write) = b.into_lazy_write()?.into_split();
    tokio::try_join!(copy(&mut a_read, &mut b_write), copy(&mut b_read, &mut a_write))
}

async fn copy(from: &mut Reader, to: &mut Writer) -> io::Result<u64> {
    let mut copied = 0;
    let mut is_bulk = false;
    loop {
        from.ready().await?;
        let moved =
            if is_bulk { splice_some(from, to).await? } else { pass_some(from, to).await? };
        let Some(moved) = moved else {
            to.end()?;
            return Ok(copied);
        };
        copied += moved as u64;
        // None at all was a false alarm.
        is_bulk = if moved == 0 { is_bulk } else { moved >= SMALL };
    }
}

/// Copies one message, or as much of it as is small. None: the end.
///
/// Copies with one read and one write, where a splice would need a pipe between two and a third to find that no more
/// is there: small pieces that go back and forth are latency that a peer waits for.
async fn pass_some(from: &Reader, to: &mut Writer) -> io::Result<Option<usize>> {
    let mut pooled_buf = PooledBuf::take();
    let count = match from.try_read(&mut pooled_buf[..SMALL]) {
        Ok(0) => return Ok(None),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(0)),
        Err(error) => return Err(error),
    };
    let mut left = &pooled_buf[..count];
    while !left.is_empty() {
        let sent = poll_fn(|cx| to.poll_send(cx, left)).await?;
        left = &left[sent..];
    }
    Ok(Some(count))
}

/// Moves all bytes that have arrived. Returns `None` at the end of the stream, with nothing before it.
async fn splice_some(from: &Reader, to: &mut Writer) -> io::Result<Option<usize>> {
    // An idle direction holds no pipe.
    let pipe = Pipe::take()?;
    let mut moved = 0;
    loop {
        let mut held = match from.try_io(|fd| move_some(fd, pipe.write.as_fd(), PIPE_BYTES)) {
            Ok(0) if moved == 0 => {
                pipe.recycle();
                return Ok(None);
            }
            Ok(0) => break,
            Ok(taken) => taken,
            // The pipe is empty here, so it is the socket that has nothing more.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        moved += held;
        while held > 0 {
            let space = |fd: BorrowedFd<'_>| move_some(pipe.read.as_fd(), fd, held);
            match poll_fn(|cx| to.poll_io(cx, space)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => held -= sent,
            }
        }
        // A sender that is faster than this must not starve the thread's other tasks.
        consume_budget().await;
    }
    pipe.recycle();
    Ok(Some(moved))
}

fn move_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

/// A pipe that is empty or holds bytes in transit. Dropping it closes it and discards its bytes.
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

    /// Returns an empty pipe to the pool.
    fn recycle(self) {
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
    use crate::Socket;

    #[tokio::test]
    async fn splice_between_socket_kinds_is_whole_and_ends_per_direction() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (a, _) = listener.accept().await.unwrap();
        let (b, mut unix) = UnixStream::pair().unwrap();
        let relaying =
            tokio::spawn(async move { relay_sockets(Socket::from(a), Socket::from(b)).await });
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
    async fn messages_of_every_size_arrive_whole_and_at_once() {
        let (mut near, a) = UnixStream::pair().unwrap();
        let (b, mut far) = UnixStream::pair().unwrap();
        let relaying =
            tokio::spawn(async move { relay_sockets(Socket::from(a), Socket::from(b)).await });
        let sizes = [1, SMALL - 1, SMALL, SMALL + 1, 7, 10 * SMALL, 1, 2 * SMALL, 3, 5];
        for (number, size) in sizes.into_iter().enumerate() {
            let message = vec![u8::try_from(number).unwrap(); size];
            let (mut there, mut back) = (vec![0; size], vec![0; size]);
            let (written, read) =
                tokio::join!(near.write_all(&message), far.read_exact(&mut there));
            written.and(read.map(drop)).unwrap();
            let (written, read) = tokio::join!(far.write_all(&there), near.read_exact(&mut back));
            written.and(read.map(drop)).unwrap();
            assert!(back == message, "{size}");
        }
        // The last bytes and the end come together.
        near.write_all(b"last").await.unwrap();
        drop(near);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
        drop(far);
        let _ = relaying.await.unwrap();
    }

    #[tokio::test]
    async fn stalled_reader_holds_only_kernel_buffers() {
        let (mut near, a) = UnixStream::pair().unwrap();
        let (b, _stalled) = UnixStream::pair().unwrap();
        tokio::spawn(async move { relay_sockets(Socket::from(a), Socket::from(b)).await });
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

    #[tokio::test]
    async fn a_fast_transfer_leaves_the_thread_to_others_too() {
        let (a, mut source) = std::os::unix::net::UnixStream::pair().unwrap();
        let (b, mut sink) = std::os::unix::net::UnixStream::pair().unwrap();
        // Both ends are as fast as they can.
        let sending = std::thread::spawn(move || {
            let pooled_buf = vec![0; 1024 * 1024];
            while std::io::Write::write_all(&mut source, &pooled_buf).is_ok() {}
        });
        let taking = std::thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
        let relay = async {
            relay_sockets(crate::DetachedSocket::Unix(a), crate::DetachedSocket::Unix(b)).await
        };
        let others = async {
            for _ in 0..20 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = relay => panic!("it has an end"),
            () = others => {}
        }
        sending.join().unwrap();
        let _ = taking.join().unwrap();
    }
}
