//! Buffers responses until they are worth a system call.

use std::io;

use nix::errno::Errno;

/// Sent as soon as this much has gathered.
const ENOUGH: usize = 256 * 1024;
/// The largest data of one answer.
pub(super) const MAX_DATA: usize = 255 * 1024;
/// Room for one more of the largest answers, in front of which everything else is sent.
const CAPACITY: usize = ENOUGH + MAX_DATA + 64 * 1024;

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// The protocol's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub fn new(code: Code, message: &str) -> Self {
        Self { code, message: message.to_owned() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Self { code: Code::Failure, message: error.to_string() },
        }
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        let code = if error == Errno::ENOENT {
            Code::NoSuchFile
        } else if [Errno::EPERM, Errno::EACCES].contains(&error) {
            Code::PermissionDenied
        } else if error == Errno::ENOSYS {
            Code::Unsupported
        } else {
            Code::Failure
        };
        Self::new(code, error.desc())
    }
}

/// Answers not yet sent.
///
/// The bytes behind `end` stay initialised, so that file data is read to where it is sent from.
#[derive(Debug)]
pub(super) struct Output {
    bytes: Vec<u8>,
    end: usize,
}

impl Default for Output {
    fn default() -> Self {
        Self { bytes: vec![0; CAPACITY], end: 0 }
    }
}

impl Output {
    /// Takes the buffered bytes.
    pub fn take(&mut self) -> &[u8] {
        &self.bytes[..std::mem::take(&mut self.end)]
    }

    pub fn is_enough(&self) -> bool {
        self.end >= ENOUGH
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[self.end..end].copy_from_slice(bytes);
        self.end = end;
    }

    /// Writes a packet; its length is known when its body is there.
    fn packet(&mut self, kind: u8, id: u32, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.end;
        self.put(&[0; 4]);
        self.put(&[kind]);
        self.put(&id.to_be_bytes());
        body(&mut Body(self));
        self.close(start);
    }

    fn close(&mut self, start: usize) {
        let length = u32::try_from(self.end - start - 4).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    pub fn version(&mut self, extensions: &[(&str, &str)]) {
        // The version stands where other packets have their id.
        self.packet(2, 3, |body| {
            for (name, version) in extensions {
                body.string(name.as_bytes()).string(version.as_bytes());
            }
        });
    }

    pub fn status(&mut self, id: u32, code: Code, message: &str) {
        self.packet(STATUS, id, |body| {
            body.u32(code as u32).string(message.as_bytes()).string(b"en");
        });
    }

    pub fn handle(&mut self, id: u32, handle: u32) {
        self.packet(HANDLE, id, |body| {
            body.string(&handle.to_be_bytes());
        });
    }

    /// Lets `read` fill in data; nothing means the end of the file.
    pub fn data<E>(
        &mut self,
        id: u32,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        const HEAD: usize = 13;
        let start = self.end;
        let from = start + HEAD;
        if self.bytes.len() < from + length {
            self.bytes.resize(from + length, 0);
        }
        let count = read(&mut self.bytes[from..from + length])?;
        if count == 0 {
            self.status(id, Code::Eof, "End of file");
            return Ok(());
        }
        self.put(&[0, 0, 0, 0, DATA]);
        self.put(&id.to_be_bytes());
        self.put(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
        self.end += count;
        self.close(start);
        Ok(())
    }

    pub fn names(&mut self, id: u32, count: usize, body: impl FnOnce(&mut Body<'_>)) {
        self.packet(NAME, id, |packet| {
            body(packet.u32(u32::try_from(count).unwrap_or(u32::MAX)));
        });
    }

    /// A name without attributes, as an answer to what asks for a path.
    pub fn path(&mut self, id: u32, path: &[u8]) {
        self.names(id, 1, |body| {
            body.string(path).string(path).u32(0);
        });
    }

    pub fn attributes(&mut self, id: u32, body: impl FnOnce(&mut Body<'_>)) {
        self.packet(ATTRIBUTES, id, body);
    }

    pub fn extended(&mut self, id: u32, body: impl FnOnce(&mut Body<'_>)) {
        self.packet(EXTENDED_REPLY, id, body);
    }
}

/// The inside of a packet.
#[derive(Debug)]
pub(super) struct Body<'a>(&'a mut Output);

impl Body<'_> {
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.put(&value.to_be_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.put(&value.to_be_bytes());
        self
    }

    pub fn string(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.put(bytes);
        self
    }
}
