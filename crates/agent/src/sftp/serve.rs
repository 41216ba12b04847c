//! Packets in, answers out.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::statvfs::{fstatvfs, statvfs};

use super::files::{self, Handles, Target};
use super::names::Names;
use super::origin::Origin;
use super::output::{Code, MAX_DATA, Output, Refusal};
use super::request::{Malformed, Reader, Request};
use super::{attributes, extension};

/// OpenSSH's own limit.
pub(super) const MAX_PACKET: usize = 256 * 1024;
/// Bytes read at once: several requests of the usual size, or one of the largest.
const INPUT: usize = 2 * MAX_PACKET;
/// Entries per answer, which then stays far below any client's limit.
const ENTRIES: usize = 100;
const INIT: u8 = 1;

/// A session: what has come in and is not answered yet, what is open, and the answers not yet sent.
///
/// It never waits. The caller feeds it bytes, lets it work, and sends its responses.
#[derive(Debug)]
pub(crate) struct Session {
    origin: Arc<Origin>,
    input: Input,
    output: Output,
    handles: Handles,
    names: Names,
    /// A listing's line, kept so that not every entry allocates.
    line: Vec<u8>,
}

impl Session {
    pub fn new(origin: Origin) -> Self {
        Self {
            origin: Arc::new(origin),
            input: Input { bytes: vec![0; INPUT], first: 0, end: 0 },
            output: Output::default(),
            handles: Handles::default(),
            names: Names::default(),
            line: Vec::new(),
        }
    }

    /// Room for more of the client's bytes; `filled` tells how many came.
    pub fn space(&mut self) -> &mut [u8] {
        self.input.space()
    }

    pub fn filled(&mut self, count: usize) {
        self.input.end += count;
    }

    /// Answers whole requests until none is left or there is enough to send; tells whether one may be left.
    /// Failing is for what leaves no way to go on.
    pub fn work(&mut self) -> io::Result<bool> {
        let mut input = std::mem::take(&mut self.input);
        let more = self.answer_all(&mut input);
        self.input = input;
        more
    }

    /// Takes the responses to send.
    pub fn answers(&mut self) -> &[u8] {
        self.output.take()
    }

    fn answer_all(&mut self, input: &mut Input) -> io::Result<bool> {
        while let Some(packet) = input.next_packet()? {
            self.answer(packet)?;
            if self.output.is_enough() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The client's bytes from the first that is not answered.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    first: usize,
    end: usize,
}

impl Input {
    /// Returns the free space. After work, less than a packet is left, so it is never empty.
    fn space(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.first..self.end, 0);
        self.end -= self.first;
        self.first = 0;
        &mut self.bytes[self.end..]
    }

    /// The next packet, without its length, if it is whole.
    fn next_packet(&mut self) -> io::Result<Option<&[u8]>> {
        let bytes = &self.bytes[self.first..self.end];
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > MAX_PACKET {
            return Err(malformed());
        }
        let packet = rest.get(..length);
        if packet.is_some() {
            self.first += 4 + length;
        }
        Ok(packet)
    }
}

/// Serves requests until the end of `input`.
pub(super) fn serve(
    mut input: impl Read,
    mut output: impl Write,
    origin: Origin,
) -> io::Result<()> {
    let mut session = Session::new(origin);
    loop {
        match input.read(session.space()) {
            Ok(0) => return Ok(()),
            Ok(count) => session.filled(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        loop {
            let worked = session.work();
            // Also what was answered before the client said what is not SFTP.
            output.write_all(session.answers())?;
            if !worked? {
                break;
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the client sent what is not SFTP")
}

impl Session {
    fn answer(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut rest = Reader(packet);
        let (Ok(kind), Ok(id)) = (rest.u8(), rest.u32()) else {
            return Err(malformed());
        };
        if kind == INIT {
            self.output.version(&extension::OFFERED);
            return Ok(());
        }
        let answered = match Request::parse(kind, rest) {
            Ok(request) => self.act(id, request),
            Err(Malformed) => Err(Refusal::new(Code::BadMessage, "Bad message")),
        };
        if let Err(Refusal { code, message }) = answered {
            self.output.status(id, code, &message);
        }
        Ok(())
    }

    /// Does what is asked and answers it, or says why not.
    fn act(&mut self, id: u32, request: Request<'_>) -> Result<(), Refusal> {
        let origin = Arc::clone(&self.origin);
        let at = |path| origin.at(path);
        match request {
            Request::Open { path, flags, wanted } => {
                let handle = self.handles.add(files::open(&at(path), flags, wanted)?)?;
                return self.sent(|output| output.handle(id, handle));
            }
            Request::OpenDirectory { path } => {
                let handle = self.handles.add(files::open_directory(&at(path))?)?;
                return self.sent(|output| output.handle(id, handle));
            }
            Request::Read { handle, offset, length } => {
                let (file, _) = self.handles.file(handle)?;
                let length = (length as usize).min(MAX_DATA);
                self.output.data(id, length, |data| file.read_at(data, offset))?;
                return Ok(());
            }
            Request::ReadDirectory { handle } => return self.read_directory(id, handle),
            Request::Stat { path } => return self.attributes(id, &fs::metadata(at(path))?),
            Request::LinkStat { path } => {
                return self.attributes(id, &fs::symlink_metadata(at(path))?);
            }
            Request::HandleStat { handle } => {
                let meta = self.handles.metadata(handle)?;
                return self.attributes(id, &meta);
            }
            Request::RealPath { path } => return self.path(id, &files::real_path(&at(path))?),
            Request::ReadLink { path } => return self.path(id, &fs::read_link(at(path))?),
            Request::ExpandPath { path } => {
                return self.path(id, &extension::expand(&origin, path)?);
            }
            Request::HomeDirectory { user } => {
                return self.path(id, &extension::home(&origin, user)?);
            }
            Request::FileSystem { path } => {
                let facts = statvfs(&*at(path))?;
                return self.sent(|output| {
                    output.extended(id, |body| extension::file_system(body, &facts));
                });
            }
            Request::HandleFileSystem { handle } => {
                let facts = fstatvfs(self.handles.file(handle)?.0)?;
                return self.sent(|output| {
                    output.extended(id, |body| extension::file_system(body, &facts));
                });
            }
            Request::Limits => {
                return self.sent(|output| output.extended(id, extension::limits));
            }
            Request::NamesById { users, groups } => {
                extension::names_by_id(&mut self.output, id, users, groups, &mut self.names);
                return Ok(());
            }
            Request::Write { handle, offset, data } => {
                let (file, append) = self.handles.file(handle)?;
                files::write(file, append, offset, data)?;
            }
            Request::Close { handle } => self.handles.close(handle)?,
            Request::SetStat { path, wanted } => files::set(Target::Path(&at(path)), &wanted)?,
            Request::LinkSetStat { path, wanted } => {
                files::set(Target::Link(&at(path)), &wanted)?;
            }
            Request::HandleSetStat { handle, wanted } => {
                files::set(Target::File(self.handles.file(handle)?.0), &wanted)?;
            }
            Request::Remove { path } => fs::remove_file(at(path))?,
            Request::MakeDirectory { path, wanted } => files::make_directory(&at(path), wanted)?,
            Request::RemoveDirectory { path } => fs::remove_dir(at(path))?,
            Request::Rename { from, to } => files::rename(&at(from), &at(to))?,
            Request::PosixRename { from, to } => fs::rename(at(from), at(to))?,
            Request::HardLink { from, to } => fs::hard_link(at(from), at(to))?,
            Request::SymbolicLink { target, path } => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), at(path))?;
            }
            Request::Sync { handle } => self.handles.file(handle)?.0.sync_all()?,
            Request::CopyData { from, from_offset, length, to, to_offset } => {
                let (from, _) = self.handles.file(from)?;
                let (to, _) = self.handles.file(to)?;
                extension::copy(from, from_offset, length, to, to_offset)?;
            }
            Request::Unknown => return Err(Refusal::new(Code::Unsupported, "Not supported")),
        }
        self.output.status(id, Code::Ok, "Success");
        Ok(())
    }

    fn sent(&mut self, answer: impl FnOnce(&mut Output)) -> Result<(), Refusal> {
        answer(&mut self.output);
        Ok(())
    }

    fn attributes(&mut self, id: u32, meta: &fs::Metadata) -> Result<(), Refusal> {
        self.sent(|output| output.attributes(id, |body| attributes::put(body, meta)))
    }

    fn path(&mut self, id: u32, path: &std::path::Path) -> Result<(), Refusal> {
        self.sent(|output| output.path(id, path.as_os_str().as_bytes()))
    }

    fn read_directory(&mut self, id: u32, handle: u32) -> Result<(), Refusal> {
        let entries = self.handles.directory(handle)?;
        let mut found = Vec::with_capacity(ENTRIES);
        while found.len() < ENTRIES
            && let Some(entry) = entries.next()
        {
            let entry = entry?;
            // One may be gone by now.
            if let Ok(meta) = entry.metadata() {
                found.push((entry.file_name(), meta));
            }
        }
        if found.is_empty() {
            return Err(Refusal::new(Code::Eof, "End of directory"));
        }
        let now = attributes::now();
        let (names, line) = (&mut self.names, &mut self.line);
        self.output.names(id, found.len(), |body| {
            for (name, meta) in &found {
                attributes::listing(line, name.as_bytes(), meta, names, now);
                body.string(name.as_bytes()).string(line);
                attributes::put(body, meta);
            }
        });
        Ok(())
    }
}
