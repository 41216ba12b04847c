//! Changes of this machine's network devices, as the kernel tells them (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// More than the kernel puts into one message.
const MOST_BYTES: usize = 32 << 10;
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// What happens to devices in the network namespace of whoever subscribed.
#[derive(Debug)]
pub struct DeviceChanges {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl DeviceChanges {
    /// # Errors
    /// The kernel has no socket for it.
    pub fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let route = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, route)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK.cast_unsigned()))?;
        Ok(Self { socket: watched(socket)?, buffer: vec![0; MOST_BYTES] })
    }

    /// Waits for something to change, and gives the names of devices that it was about. `None`:
    /// more changed than the kernel kept.
    ///
    /// # Errors
    /// The socket is of no use any more.
    pub async fn next(&mut self) -> io::Result<Option<Vec<String>>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let number = ready.get_inner().as_raw_fd();
            match recv(number, &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => return Ok(self.buffer.get(..length).map(names)),
                Err(Errno::ENOBUFS) => return Ok(None),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it owns its descriptor, which stays open and the same until it is dropped.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// The devices that a datagram's messages are about.
fn names(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((message, rest)) = cut(bytes, MESSAGE_HEADER) {
        let kind = bytes.get(4..6).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
        if matches!(kind, Some(libc::RTM_NEWLINK | libc::RTM_DELLINK)) {
            names.extend(message.get(LINK_HEADER..).and_then(name));
        }
        bytes = rest;
    }
    names
}

/// The name among the attributes of a device.
fn name(mut bytes: &[u8]) -> Option<String> {
    while let Some((value, rest)) = cut(bytes, ATTRIBUTE_HEADER) {
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        if kind == libc::IFLA_IFNAME {
            let text = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(text.to_vec()).ok();
        }
        bytes = rest;
    }
    None
}

/// What is behind the header of the first part, and what comes after it. Parts begin with their
/// length (of four bytes in messages, of two in attributes) and at multiples of four.
fn cut(bytes: &[u8], header: usize) -> Option<(&[u8], &[u8])> {
    let length = match header {
        ATTRIBUTE_HEADER => u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?).into(),
        _ => usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?,
    };
    let part = bytes.get(header..length)?;
    let next = length.checked_next_multiple_of(4)?.min(bytes.len());
    Some((part, bytes.get(next..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(MESSAGE_HEADER + LINK_HEADER + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.resize(MESSAGE_HEADER + LINK_HEADER, 0);
        bytes.extend_from_slice(attributes);
        bytes
    }

    #[test]
    fn the_devices_of_a_datagram_are_named_and_garbage_is_nobody() {
        let about = [attribute(9, b"mtu"), attribute(libc::IFLA_IFNAME, b"kr0\0")].concat();
        let other = attribute(libc::IFLA_IFNAME, b"kr1\0");
        let all = [
            message(libc::RTM_NEWLINK, &about),
            message(libc::RTM_NEWADDR, &about),
            message(libc::RTM_DELLINK, &other),
        ];
        assert_eq!(names(&all.concat()), ["kr0", "kr1"]);
        for cut in 0..all[0].len() {
            assert_eq!(names(&all[0][..cut]), [""; 0]);
        }
        assert_eq!(names(&[0; 64]), [""; 0]);
        assert_eq!(names(&[0xff; 64]), [""; 0]);
        assert_eq!(names(&message(libc::RTM_NEWLINK, &[0; 8])), [""; 0]);
    }
}
