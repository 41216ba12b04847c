//! The frames of `/ws/forward`, as existing clients speak them: many connections on one socket.
//!
//! ```text
//!  byte   0     kind     1 connect, 2 connected, 3 data, 4 close, 5 error, 6 ping, 7 pong
//!  byte   1     0 TCP, 1 UDP
//!  bytes  2-5   the connection, a number of the client's choice
//!  bytes  6-7   the port, in a connect
//!  then         data, or the text of an error
//! ```
//!
//! Numbers are big endian. A frame is one binary message, so its length is the message's.

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub const HEADER: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connect,
    Connected,
    Data,
    Close,
    Error,
    Ping,
    Pong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Tcp,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFrame {
    pub kind: Kind,
    pub proto: Proto,
    pub client: u32,
    pub port: u16,
    pub payload: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    #[error("a frame of {0} bytes; the header alone has {HEADER}")]
    Short(usize),
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    #[error("a frame of the unknown protocol {0}")]
    Proto(u8),
}

const KINDS: [Kind; 7] =
    [Kind::Connect, Kind::Connected, Kind::Data, Kind::Close, Kind::Error, Kind::Ping, Kind::Pong];

impl TunnelFrame {
    /// # Errors
    /// The bytes are not a valid frame.
    pub fn decode(mut bytes: Bytes) -> Result<Self, TunnelError> {
        if bytes.len() < HEADER {
            return Err(TunnelError::Short(bytes.len()));
        }
        let (kind, proto) = (bytes.get_u8(), bytes.get_u8());
        let kind = usize::from(kind)
            .checked_sub(1)
            .and_then(|at| KINDS.get(at).copied())
            .ok_or(TunnelError::Kind(kind))?;
        let proto = match proto {
            0 => Proto::Tcp,
            1 => Proto::Udp,
            other => return Err(TunnelError::Proto(other)),
        };
        let (client, port) = (bytes.get_u32(), bytes.get_u16());
        Ok(Self { kind, proto, client, port, payload: bytes })
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + self.payload.len());
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or_default();
        out.put_u8(u8::try_from(kind + 1).unwrap_or_default());
        out.put_u8(match self.proto {
            Proto::Tcp => 0,
            Proto::Udp => 1,
        });
        out.put_u32(self.client);
        out.put_u16(self.port);
        out.put_slice(&self.payload);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_reads_back(
            kind in 0..KINDS.len(),
            udp: bool,
            client: u32,
            port: u16,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let proto = if udp { Proto::Udp } else { Proto::Tcp };
            let frame = TunnelFrame { kind: KINDS[kind], proto, client, port, payload: payload.into() };
            prop_assert_eq!(TunnelFrame::decode(frame.encode()).unwrap(), frame);
        }

        #[test]
        fn a_strangers_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(frame) = TunnelFrame::decode(bytes.clone().into()) {
                prop_assert_eq!(&frame.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn the_bytes_are_those_existing_clients_send() {
        let frame = TunnelFrame {
            kind: Kind::Connect,
            proto: Proto::Udp,
            client: 0x0102_0304,
            port: 8080,
            payload: Bytes::new(),
        };
        assert_eq!(&frame.encode()[..], [1, 1, 1, 2, 3, 4, 0x1f, 0x90]);
    }
}
