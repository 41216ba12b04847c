//! A guest of a few frames: what is at the other end of a TAP, without a machine around it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// For what comes at once where the computer has nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing comes where nothing should.
pub const QUIET: Duration = Duration::from_millis(700);
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub type Mac = [u8; 6];

pub struct Guest {
    tap: File,
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub gateway: Mac,
}

impl Guest {
    /// Takes the TAP's other end, as QEMU does; in the TAP's namespace.
    #[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
    pub fn plug_in(tap: &str, mac: Mac, address: Ipv4Addr, gateway: Mac) -> Self {
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        const IFF_TAP_WITHOUT_INFO: i16 = 0x1002;
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0u8; 40];
        request[..tap.len()].copy_from_slice(tap.as_bytes());
        request[16..18].copy_from_slice(&IFF_TAP_WITHOUT_INFO.to_ne_bytes());
        // SAFETY: the request is a whole `struct ifreq`, which lives for the length of the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "{tap}: {}", std::io::Error::last_os_error());
        Self { tap: file, mac, address, gateway }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.tap.write_all(frame).unwrap();
    }

    /// Sends an IPv4 packet of its own by way of the gateway.
    pub fn send_ip(&mut self, to: Ipv4Addr, protocol: u8, payload: &[u8]) {
        let frame =
            ethernet(self.gateway, self.mac, 0x0800, &ipv4(self.address, to, protocol, payload));
        self.send(&frame);
    }

    /// The first packet from `from`, as its payload; waits as long as a busy computer may take.
    pub fn hear_ip(&mut self, from: Ipv4Addr, protocol: u8) -> Option<Vec<u8>> {
        self.hear_ip_until(from, protocol, Instant::now() + PATIENCE)
    }

    /// No packet from `from` comes for a while.
    pub fn misses_ip(&mut self, from: Ipv4Addr, protocol: u8) -> bool {
        self.hear_ip_until(from, protocol, Instant::now() + QUIET).is_none()
    }

    fn hear_ip_until(
        &mut self,
        from: Ipv4Addr,
        protocol: u8,
        deadline: Instant,
    ) -> Option<Vec<u8>> {
        while let Some(frame) = self.hear(deadline) {
            let ours = frame.get(12..14) == Some(&[0x08, 0x00])
                && frame.get(23) == Some(&protocol)
                && frame.get(26..30) == Some(&from.octets());
            if ours {
                return Some(frame[34..].to_vec());
            }
        }
        None
    }

    /// The next frame that comes in time.
    pub fn hear(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap();
        let mut wanted = [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, timeout).unwrap() == 0 {
            return None;
        }
        let mut frame = vec![0; 2048];
        let length = self.tap.read(&mut frame).unwrap();
        frame.truncate(length);
        Some(frame)
    }
}

pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = [&[0x45, 0][..], &length, &[0, 1, 0, 0, 64, protocol, 0, 0]].concat();
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header.as_slice(), payload].concat()
}

/// Without a checksum, which IPv4 allows.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let words = [from, to, length, 0].map(u16::to_be_bytes).concat();
    [words.as_slice(), data].concat()
}

pub fn ping() -> Vec<u8> {
    let mut packet = [8, 0, 0, 0, 0, 7, 0, 1].to_vec();
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// The first packet of a connection.
pub fn syn(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut packet = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, TCP, 0, 20], &packet].concat();
    let sum = checksum(&pseudo);
    packet[16..18].copy_from_slice(&sum);
    packet
}

/// "Who has `target`?", or with `answer` "`sender` is at `mac`".
pub fn arp(answer: bool, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let kind = if answer { 2 } else { 1 };
    [&[0, 1, 8, 0, 6, 4, 0, kind][..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
