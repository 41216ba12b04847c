//! Datagrams on a byte stream: two bytes of length (big endian), then the datagram.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest payload of a datagram over IPv4.
pub const MAX_DATAGRAM: usize = 65_507;
const HEADER: usize = 2;

/// Appends a datagram; drops one that is too long for any network.
pub fn put(out: &mut BytesMut, datagram: &[u8]) {
    if let Ok(length) = u16::try_from(datagram.len()) {
        out.reserve(HEADER + datagram.len());
        out.put_u16(length);
        out.put_slice(datagram);
    }
}

/// Takes one whole datagram off the front of `buffer`, if one is there.
pub fn take(buffer: &mut BytesMut) -> Option<Bytes> {
    let mut header = buffer.get(..HEADER)?;
    let length = usize::from(header.get_u16());
    if buffer.len() < HEADER + length {
        return None;
    }
    buffer.advance(HEADER);
    Some(buffer.split_to(length).freeze())
}
