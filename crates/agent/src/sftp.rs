//! SFTP version 3 with OpenSSH's extensions, in a process that runs as the user whose files it serves.
//!
//! A loop of plain system calls: it takes what has arrived, answers every whole request of it in order, and sends the
//! answers together. Nothing else happens in this process, so nothing has to wait for anything else. Names are bytes,
//! as they are on Linux.

mod attributes;
mod extension;
mod files;
mod names;
mod output;
mod request;
mod serve;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::AgentError;

/// Parses a packet and forgets it.
pub(crate) fn parse(packet: &[u8]) {
    if let [kind, fields @ ..] = packet {
        let _ = request::Request::parse(*kind, request::Reader(fields));
    }
}

/// Serves SFTP on standard input and output until the client is done.
pub fn sftp_server() -> Result<(), AgentError> {
    crate::sys::limit_allocator();
    // As files: the standard library's own streams have buffers of their own in between.
    let file = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    file(io::stdin().as_fd())
        .and_then(|input| serve::serve(input, file(io::stdout().as_fd())?))
        .map_err(AgentError::Sftp)
}
