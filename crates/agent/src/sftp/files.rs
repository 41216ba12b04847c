use std::collections::HashMap;
use std::fs::{self, OpenOptions, ReadDir};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};
use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
    StatusCode, Version,
};
use russh_sftp::server::{Handler, StatusReply};

use super::names::{attributes, entry};

const MAX_HANDLES: usize = 1024;
/// Entries per answer, so that an answer stays far below any client's packet limit.
const ENTRIES: usize = 100;
/// What a client may read or write at once; OpenSSH then moves this much per request instead of 32 KiB.
const MAX_DATA: u32 = 255 * 1024;
const LIMITS: &str = "limits@openssh.com";
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";

#[derive(Debug)]
enum Open {
    File { file: fs::File, append: bool },
    Directory { path: PathBuf, entries: ReadDir },
}

/// Real files, with the rights of the process.
#[derive(Debug, Default)]
pub(super) struct Files {
    open: HashMap<String, Open>,
    next: u64,
}

type Answer<T> = Result<T, StatusReply>;

fn failure(error: io::Error) -> StatusReply {
    let code = if error.kind() == io::ErrorKind::NotFound {
        StatusCode::NoSuchFile
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        StatusCode::PermissionDenied
    } else {
        StatusCode::Failure
    };
    code.with_message(error.to_string())
}

fn unix(error: nix::Error) -> StatusReply {
    failure(error.into())
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: "Success".to_owned(),
        language_tag: "en".to_owned(),
    }
}

fn attrs(id: u32, meta: io::Result<fs::Metadata>) -> Answer<Attrs> {
    let attrs = attributes(&meta.map_err(failure)?);
    Ok(Attrs { id, attrs })
}

/// An empty path means the directory the session starts in.
fn local(path: &str) -> &Path {
    Path::new(if path.is_empty() { "." } else { path })
}

impl Files {
    fn add(&mut self, id: u32, open: Open) -> Answer<Handle> {
        if self.open.len() >= MAX_HANDLES {
            return Err(StatusCode::Failure.with_message("too many open files"));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Answer<(&fs::File, bool)> {
        match self.open.get(handle) {
            Some(Open::File { file, append }) => Ok((file, *append)),
            Some(Open::Directory { .. }) | None => {
                Err(StatusCode::Failure.with_message("not an open file"))
            }
        }
    }

    fn extension(&mut self, id: u32, request: &str, mut data: &[u8]) -> Answer<Packet> {
        match request {
            LIMITS => {
                let mut limits = Vec::with_capacity(32);
                for limit in [MAX_DATA + 1024, MAX_DATA, MAX_DATA] {
                    limits.put_u64(u64::from(limit));
                }
                limits.put_u64(MAX_HANDLES as u64);
                return Ok(Packet::ExtendedReply(ExtendedReply { id, data: limits }));
            }
            POSIX_RENAME => {
                let (from, to) = (string(&mut data)?, string(&mut data)?);
                fs::rename(local(&from), local(&to)).map_err(failure)?;
            }
            HARDLINK => {
                let (from, to) = (string(&mut data)?, string(&mut data)?);
                fs::hard_link(local(&from), local(&to)).map_err(failure)?;
            }
            FSYNC => {
                let handle = string(&mut data)?;
                self.file(&handle)?.0.sync_all().map_err(failure)?;
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(Packet::Status(done(id)))
    }
}

/// Takes one length-prefixed string off the data of an extended request.
fn string(data: &mut &[u8]) -> Answer<String> {
    let bad = || StatusReply::from(StatusCode::BadMessage);
    let length = data.try_get_u32().map_err(|_| bad())? as usize;
    let bytes = data.get(..length).ok_or_else(bad)?;
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| bad())?;
    data.advance(length);
    Ok(text)
}

/// Applies the attributes that are present, the size first and the times last, since each changes the later ones.
fn change(path: &Path, file: Option<&fs::File>, wanted: &FileAttributes) -> Answer<()> {
    if let Some(size) = wanted.size {
        match file {
            Some(file) => file.set_len(size).map_err(failure)?,
            None => OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(size))
                .map_err(failure)?,
        }
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        let (uid, gid) = (wanted.uid.map(Uid::from_raw), wanted.gid.map(Gid::from_raw));
        match file {
            Some(file) => nix::unistd::fchown(file, uid, gid).map_err(unix)?,
            None => nix::unistd::chown(path, uid, gid).map_err(unix)?,
        }
    }
    if let Some(mode) = wanted.permissions {
        let mode = fs::Permissions::from_mode(mode & 0o7777);
        match file {
            Some(file) => file.set_permissions(mode).map_err(failure)?,
            None => fs::set_permissions(path, mode).map_err(failure)?,
        }
    }
    if wanted.atime.is_some() || wanted.mtime.is_some() {
        let time = |seconds: Option<u32>| match seconds {
            Some(seconds) => TimeSpec::new(i64::from(seconds), 0),
            None => TimeSpec::UTIME_OMIT,
        };
        let (atime, mtime) = (time(wanted.atime), time(wanted.mtime));
        match file {
            Some(file) => nix::sys::stat::futimens(file.as_fd(), &atime, &mtime),
            None => {
                utimensat(nix::fcntl::AT_FDCWD, path, &atime, &mtime, UtimensatFlags::FollowSymlink)
            }
        }
        .map_err(unix)?;
    }
    Ok(())
}

impl Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> Self::Error {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _version: u32, _: HashMap<String, String>) -> Answer<Version> {
        let mut version = Version::new();
        for name in [LIMITS, POSIX_RENAME, HARDLINK, FSYNC] {
            version.extensions.insert(name.to_owned(), "1".to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Answer<Handle> {
        let append = flags.contains(OpenFlags::APPEND);
        let write = flags.contains(OpenFlags::WRITE);
        let mut options = OpenOptions::new();
        options
            .read(flags.contains(OpenFlags::READ) || !(write || append))
            .write(write && !append)
            .append(append)
            .truncate(write && flags.contains(OpenFlags::TRUNCATE) && !append)
            .mode(attrs.permissions.map_or(0o666, |mode| mode & 0o7777))
            .custom_flags(libc::O_NOCTTY);
        if write || append {
            let create = flags.contains(OpenFlags::CREATE);
            options.create(create).create_new(create && flags.contains(OpenFlags::EXCLUDE));
        }
        let file = options.open(local(&filename)).map_err(failure)?;
        self.add(id, Open::File { file, append })
    }

    async fn close(&mut self, id: u32, handle: String) -> Answer<Status> {
        match self.open.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(StatusCode::Failure.with_message("not open")),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, len: u32) -> Answer<Data> {
        let (file, _) = self.file(&handle)?;
        let mut data = vec![0; len.min(MAX_DATA) as usize];
        let count = file.read_at(&mut data, offset).map_err(failure)?;
        if count == 0 && len != 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(count);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Answer<Status> {
        let (mut file, append) = self.file(&handle)?;
        let written = if append {
            io::Write::write_all(&mut file, &data)
        } else {
            file.write_all_at(&data, offset)
        };
        written.map_err(failure)?;
        Ok(done(id))
    }

    async fn stat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        attrs(id, fs::metadata(local(&path)))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Answer<Attrs> {
        attrs(id, fs::symlink_metadata(local(&path)))
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Answer<Attrs> {
        match self.open.get(&handle) {
            Some(Open::Directory { path, .. }) => attrs(id, fs::metadata(path)),
            Some(Open::File { file, .. }) => attrs(id, file.metadata()),
            None => Err(StatusCode::Failure.with_message("not open")),
        }
    }

    async fn setstat(&mut self, id: u32, path: String, attrs: FileAttributes) -> Answer<Status> {
        change(local(&path), None, &attrs)?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, attrs: FileAttributes) -> Answer<Status> {
        let (file, _) = self.file(&handle)?;
        change(Path::new(""), Some(file), &attrs)?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Answer<Handle> {
        let path = local(&path).to_owned();
        let entries = fs::read_dir(&path).map_err(failure)?;
        self.add(id, Open::Directory { path, entries })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Answer<Name> {
        let Some(Open::Directory { entries, .. }) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.with_message("not an open directory"));
        };
        let mut files = Vec::new();
        while files.len() < ENTRIES
            && let Some(found) = entries.next()
        {
            let found = found.map_err(failure)?;
            // An entry may be gone by now; one whose name is not UTF-8 could not be named by the client again.
            if let (Ok(meta), Ok(name)) = (found.metadata(), found.file_name().into_string()) {
                files.push(entry(name, attributes(&meta)));
            }
        }
        if files.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, filename: String) -> Answer<Status> {
        fs::remove_file(local(&filename)).map_err(failure)?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Answer<Status> {
        fs::DirBuilder::new()
            .mode(attrs.permissions.map_or(0o777, |mode| mode & 0o7777))
            .create(local(&path))
            .map_err(failure)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Answer<Status> {
        fs::remove_dir(local(&path)).map_err(failure)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Answer<Name> {
        // A path that does not exist yet is still made absolute: clients ask before they create.
        let full = match fs::canonicalize(local(&path)) {
            Ok(full) => full,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::path::absolute(local(&path)).map_err(failure)?
            }
            Err(error) => return Err(failure(error)),
        };
        let name = full.to_string_lossy().into_owned();
        let files = vec![russh_sftp::protocol::File::dummy(name)];
        Ok(Name { id, files })
    }

    async fn rename(&mut self, id: u32, oldpath: String, newpath: String) -> Answer<Status> {
        // Version 3 says that renaming never replaces; clients that want it use posix-rename.
        if fs::symlink_metadata(local(&newpath)).is_ok() {
            return Err(StatusCode::Failure.with_message("the new name exists"));
        }
        fs::rename(local(&oldpath), local(&newpath)).map_err(failure)?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Answer<Name> {
        let target = fs::read_link(local(&path)).map_err(failure)?;
        let name = target.to_string_lossy().into_owned();
        let files = vec![russh_sftp::protocol::File::dummy(name)];
        Ok(Name { id, files })
    }

    async fn symlink(&mut self, id: u32, first: String, second: String) -> Answer<Status> {
        // OpenSSH, and everybody after it, sends the target first, against the specification.
        std::os::unix::fs::symlink(first, local(&second)).map_err(failure)?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Answer<Packet> {
        self.extension(id, &request, &data)
    }
}
