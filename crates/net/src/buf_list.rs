//! A queue of bytes to send, in the pieces in which they arrived.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Pieces below this are merged: otherwise a peer that sends single bytes would make its window cost a hundred times
/// its size.
const SMALL: usize = 4 * 1024;

/// A queue of bytes that is written with as few system calls as its pieces allow.
#[derive(Debug, Default)]
pub struct BufList {
    buf_list: VecDeque<Bytes>,
    /// Small pieces, behind those of the queue.
    small: BytesMut,
    bytes: usize,
}

impl BufList {
    pub fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if self.small.len() + data.len() <= SMALL {
            return self.small.extend_from_slice(&data);
        }
        if !self.small.is_empty() {
            self.buf_list.push_back(self.small.split().freeze());
        }
        if data.len() <= SMALL {
            self.small.extend_from_slice(&data);
        } else {
            self.buf_list.push_back(data);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Drops all bytes and returns how many there were.
    pub fn clear(&mut self) -> usize {
        std::mem::take(self).bytes
    }

    /// Writes some of the bytes and returns how many; may be dropped at any await without losing bytes.
    ///
    /// # Errors
    /// The target's own, and [`io::ErrorKind::WriteZero`] if it takes nothing any more.
    pub async fn write_some<W: AsyncWrite + Unpin>(&mut self, target: &mut W) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        match target.write_buf(self).await? {
            0 => Err(io::Error::from(io::ErrorKind::WriteZero)),
            written => Ok(written),
        }
    }
}

impl Buf for BufList {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.buf_list.front().map_or(&self.small, |front| front)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let buf_list = self.buf_list.iter().map(|piece| &piece[..]);
        let all = buf_list.chain((!self.small.is_empty()).then_some(&self.small[..]));
        slices.iter_mut().zip(all).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "advanced past the end of the queue");
        self.bytes -= count;
        while count > 0
            && let Some(front) = self.buf_list.front_mut()
        {
            let here = count.min(front.len());
            front.advance(here);
            count -= here;
            if front.is_empty() {
                self.buf_list.pop_front();
            }
        }
        self.small.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::{IntoLazyWrite, Socket};

    #[tokio::test]
    async fn buf_list_keeps_order_and_merges_small_pieces() {
        let mut buf_list = BufList::default();
        for _ in 0..SMALL {
            buf_list.push(Bytes::from_static(b"ab"));
        }
        buf_list.push(Bytes::new());
        assert_eq!((buf_list.buf_list.len(), buf_list.small.len()), (1, SMALL));
        buf_list.push(vec![b'c'; SMALL + 1].into());
        buf_list.push(Bytes::from_static(b"d"));
        let mut out = Vec::new();
        while !buf_list.is_empty() {
            buf_list.write_some(&mut out).await.unwrap();
        }
        let expected = [b"ab".repeat(SMALL), vec![b'c'; SMALL + 1], b"d".to_vec()].concat();
        assert!(out == expected);
    }

    #[tokio::test]
    async fn buf_list_writes_pieces_together_after_partial_writes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = Socket::from(near).into_lazy_write().unwrap();
        let expected: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut buf_list = BufList::default();
        expected.chunks(30_000).for_each(|piece| buf_list.push(Bytes::copy_from_slice(piece)));
        assert_eq!(buf_list.remaining(), expected.len());
        let writing = tokio::spawn(async move {
            let mut most = 0;
            while !buf_list.is_empty() {
                most = most.max(buf_list.write_some(&mut near).await.unwrap());
            }
            most
        });
        let mut arrived = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut far, &mut arrived).await.unwrap();
        assert!(arrived == expected);
        assert!(writing.await.unwrap() > 30_000);
    }
}
