//! The SSH protocol before encryption, spoken by hand.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{self, Read, Write};

pub const DISCONNECT: u8 = 1;
pub const SERVICE_REQUEST: u8 = 5;
pub const SERVICE_ACCEPT: u8 = 6;
pub const KEXINIT: u8 = 20;
pub const NEWKEYS: u8 = 21;
pub const USERAUTH_REQUEST: u8 = 50;
pub const USERAUTH_FAILURE: u8 = 51;
pub const USERAUTH_SUCCESS: u8 = 52;

/// The lists of a KEXINIT, in the protocol's order.
pub const KEX: usize = 0;
pub const HOST_KEYS: usize = 1;
pub const CIPHERS: usize = 2;

pub fn read_name(stream: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

pub fn send(stream: &mut impl Write, payload: &[u8]) {
    let padding = 4 + (8 - (5 + payload.len() + 4) % 8) % 8;
    let mut packet = Vec::new();
    packet.extend(u32::try_from(1 + payload.len() + padding).unwrap().to_be_bytes());
    packet.push(u8::try_from(padding).unwrap());
    packet.extend(payload);
    packet.extend(vec![0; padding]);
    stream.write_all(&packet).unwrap();
}

pub fn receive(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let length = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize - 1;
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest)?;
    rest.truncate(length - usize::from(header[4]));
    Ok(rest)
}

pub fn put(payload: &mut Vec<u8>, text: &str) {
    payload.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    payload.extend(text.as_bytes());
}

pub fn message(kind: u8, texts: &[&str]) -> Vec<u8> {
    let mut payload = vec![kind];
    texts.iter().for_each(|text| put(&mut payload, text));
    payload
}

pub fn kexinit(kex: &str, key: &str, cipher: &str, mac: &str) -> Vec<u8> {
    let mut payload = vec![KEXINIT];
    payload.extend([0; 16]);
    for list in [kex, key, cipher, cipher, mac, mac, "none", "none", "", ""] {
        put(&mut payload, list);
    }
    payload.extend([0; 5]);
    payload
}

/// The name-lists of a KEXINIT.
pub fn lists(payload: &[u8]) -> Vec<Vec<String>> {
    assert_eq!(payload[0], KEXINIT);
    let mut rest = &payload[17..];
    let mut lists = Vec::new();
    for _ in 0..10 {
        let (length, after) = rest.split_at(4);
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let list = std::str::from_utf8(&after[..length]).unwrap();
        lists.push(list.split(',').map(ToOwned::to_owned).collect());
        rest = &after[length..];
    }
    lists
}
