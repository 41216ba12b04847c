//! Packets in, answers out.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use nix::sys::statvfs::{fstatvfs, statvfs};

use super::files::{self, Handles, Target, local};
use super::names::Names;
use super::output::{Code, MAX_DATA, Output, Refusal};
use super::request::{Malformed, Reader, Request};
use super::{attributes, extension};

/// OpenSSH's own limit.
pub(super) const MAX_PACKET: usize = 256 * 1024;
/// What is read at once: several requests of the usual size, or one of the largest.
const INPUT: usize = 2 * MAX_PACKET;
/// Entries per answer, which then stays far below any client's limit.
const ENTRIES: usize = 100;
const INIT: u8 = 1;

/// Serves requests until the end of `input`. Failing is for what leaves no way to go on.
pub(super) fn serve(mut input: impl Read, output: impl Write) -> io::Result<()> {
    let mut server = Server {
        output: Output::new(output),
        handles: Handles::default(),
        names: Names::default(),
        line: Vec::new(),
    };
    let mut bytes = vec![0; INPUT];
    let mut filled = 0;
    loop {
        let count = match input.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        filled += count;
        let mut start = 0;
        while let Some(packet) = next_packet(&bytes[start..filled])? {
            server.answer(packet)?;
            server.output.finish_answer()?;
            start += 4 + packet.len();
        }
        server.output.flush()?;
        bytes.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// The first packet, without its length, if it is whole.
fn next_packet(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_PACKET {
        return Err(malformed());
    }
    Ok(rest.get(..length))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the client sent what is not SFTP")
}

struct Server<W> {
    output: Output<W>,
    handles: Handles,
    names: Names,
    /// A listing's line, kept so that not every entry allocates.
    line: Vec<u8>,
}

impl<W: Write> Server<W> {
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
        match request {
            Request::Open { path, flags, wanted } => {
                let handle = self.handles.add(files::open(path, flags, wanted)?)?;
                return self.sent(|output| output.handle(id, handle));
            }
            Request::OpenDirectory { path } => {
                let handle = self.handles.add(files::open_directory(path)?)?;
                return self.sent(|output| output.handle(id, handle));
            }
            Request::Read { handle, offset, length } => {
                let (file, _) = self.handles.file(handle)?;
                let length = (length as usize).min(MAX_DATA);
                self.output.data(id, length, |data| file.read_at(data, offset))?;
                return Ok(());
            }
            Request::ReadDirectory { handle } => return self.read_directory(id, handle),
            Request::Stat { path } => return self.attributes(id, &fs::metadata(local(path))?),
            Request::LinkStat { path } => {
                return self.attributes(id, &fs::symlink_metadata(local(path))?);
            }
            Request::HandleStat { handle } => {
                let meta = self.handles.metadata(handle)?;
                return self.attributes(id, &meta);
            }
            Request::RealPath { path } => return self.path(id, &files::real_path(local(path))?),
            Request::ReadLink { path } => return self.path(id, &fs::read_link(local(path))?),
            Request::ExpandPath { path } => return self.path(id, &extension::expand(path)?),
            Request::HomeDirectory { user } => return self.path(id, &extension::home(user)?),
            Request::FileSystem { path } => {
                let facts = statvfs(local(path))?;
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
            Request::SetStat { path, wanted } => files::set(Target::Path(local(path)), &wanted)?,
            Request::LinkSetStat { path, wanted } => {
                files::set(Target::Link(local(path)), &wanted)?;
            }
            Request::HandleSetStat { handle, wanted } => {
                files::set(Target::File(self.handles.file(handle)?.0), &wanted)?;
            }
            Request::Remove { path } => fs::remove_file(local(path))?,
            Request::MakeDirectory { path, wanted } => files::make_directory(path, wanted)?,
            Request::RemoveDirectory { path } => fs::remove_dir(local(path))?,
            Request::Rename { from, to } => files::rename(from, to)?,
            Request::PosixRename { from, to } => fs::rename(local(from), local(to))?,
            Request::HardLink { from, to } => fs::hard_link(local(from), local(to))?,
            Request::SymbolicLink { target, path } => {
                std::os::unix::fs::symlink(local(target), local(path))?;
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

    fn sent(&mut self, answer: impl FnOnce(&mut Output<W>)) -> Result<(), Refusal> {
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
