//! Requests that say exactly what a test wants said, over TLS or without.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

/// A TLS connection to a host.
pub type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers, as they were written.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its JSON; what is none has no fields.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of a refusal.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Values of a header, in order.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let split = |line| str::split_once(line, ':');
        let pairs = self.head.lines().filter_map(split);
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    /// What must have gone well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}{}", self.head, self.text());
        self
    }
}

/// Opens a connection that is believed if `tls` believes it.
pub fn connect(tls: &Arc<ClientConfig>, port: u16, name: &str) -> Connection {
    let tcp = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
    let name = ServerName::try_from(name.to_owned()).expect("a name or an address");
    let connection = ClientConnection::new(tls.clone(), name).expect("settings that are whole");
    StreamOwned::new(connection, tcp)
}

/// Sends a request and reads all of the answer; of one that becomes something else, the head.
pub fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    let closes = !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let defaults = [("Host", "127.0.0.1"), ("Connection", "close")];
    let missing = |name: &str| !headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    for (name, value) in defaults.iter().filter(|(name, _)| missing(name)).chain(headers) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let sent = sent.and_then(|()| stream.flush());
    let mut bytes = Vec::new();
    let mut block = [0; 16 * 1024];
    let ended: io::Result<()> = loop {
        let at = find(&bytes, b"\r\n\r\n");
        if !closes
            && at
                .is_some_and(|at| bytes.starts_with(b"HTTP/1.1 101") || at > 0 && whole(&bytes, at))
        {
            break Ok(());
        }
        match stream.read(&mut block) {
            Ok(0) => break Ok(()),
            Ok(count) => bytes.extend_from_slice(&block[..count]),
            Err(error) => break Err(error),
        }
    };
    let Some(at) = find(&bytes, b"\r\n\r\n") else {
        panic!("no answer to {method} {path}: {sent:?} {ended:?} {bytes:?}");
    };
    let head = String::from_utf8_lossy(&bytes[..at + 2]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    let body = bytes[at + 4..].to_vec();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Answer { status, body: if chunked { joined(&body) } else { body }, head }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Whether as much has come as its head says.
fn whole(bytes: &[u8], at: usize) -> bool {
    let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    bytes.len() >= at + 4 + length
}

/// A body without the lengths between its chunks.
fn joined(body: &[u8]) -> Vec<u8> {
    let (mut rest, mut all) = (body, Vec::new());
    while let Some(at) = find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..at]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_default();
        let begin = at + 2;
        if size == 0 || rest.len() < begin + size {
            break;
        }
        all.extend_from_slice(&rest[begin..begin + size]);
        rest = rest.get(begin + size + 2..).unwrap_or_default();
    }
    all
}
