//! QEMU's own network, for a runner that is not root: TCP and UDP of the guest are QEMU's, and the
//! agent is behind a port of the machine's loopback.
//!
//! The guest's 10.0.2.2 is the machine's loopback, and services there trust whoever reaches them,
//! our host's API without authentication first of all. QEMU has no switch for that alone, so a
//! guest gets nothing but its agent unless the node's owner wants [`Outward::Open`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::{Mac, Nic};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// QEMU asks the machine's resolver in the guest's name, on loopback or not.
const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const PREFIX: u8 = 24;

/// What a guest reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outward {
    /// Nothing; the agent is reached.
    #[default]
    Closed,
    /// What this user reaches, the machine's loopback included.
    Open,
}

/// The card of a machine whose agent is reached at `port` of the machine's loopback.
///
/// `guest_port` is where the agent listens.
pub fn nic(port: u16, guest_port: u16, outward: Outward) -> Nic {
    let mac = Mac::of(ADDRESS);
    let restrict = match outward {
        Outward::Closed => "on",
        Outward::Open => "off",
    };
    let netdev = format!(
        "user,id=net0,ipv6=off,net=10.0.2.0/{PREFIX},host={GATEWAY},dns={NAMESERVER},\
         restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:{guest_port}"
    );
    Nic {
        args: Nic::args(netdev, mac),
        tap: None,
        mac,
        address: ADDRESS,
        prefix: PREFIX,
        gateway: GATEWAY,
        nameservers: match outward {
            Outward::Closed => Vec::new(),
            Outward::Open => vec![NAMESERVER],
        },
        agent: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    }
}

/// A port for an agent that nobody has now: the one it had before if that can be.
/// QEMU refuses to start where somebody was quicker; then another must be asked for.
///
/// # Errors
/// There is none left.
pub fn free_port(before: Option<u16>) -> io::Result<u16> {
    let usual = before.map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    let listener = match usual {
        Some(Ok(listener)) => listener,
        Some(Err(_)) | None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    };
    Ok(listener.local_addr()?.port())
}
