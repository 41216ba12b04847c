//! SFTP version 3 with OpenSSH's extensions. Names are bytes, as they are on Linux.
//!
//! A [`Session`] answers what has arrived in order, by plain system calls with the rights of its process. It is served
//! in one of two places: by the SSH connection's own thread where the user is the one the agent runs as (root, nearly
//! always; `ssh::in_place` has why), and otherwise by a process of the user, which is [`sftp_server`].

mod attributes;
mod extension;
mod files;
mod names;
mod origin;
mod output;
mod request;
mod serve;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub(crate) use files::MAX_HANDLES;
pub(crate) use origin::Origin;
pub(crate) use serve::Session;

use crate::error::AgentError;

/// Parses a packet and forgets it.
pub(crate) fn parse(packet: &[u8]) {
    if let [kind, fields @ ..] = packet {
        let _ = request::Request::parse(*kind, request::Reader(fields));
    }
}

/// Serves SFTP on standard input and output until the client is done.
#[expect(clippy::disallowed_methods, reason = "the channel, not a terminal")]
pub fn sftp_server() -> Result<(), AgentError> {
    crate::sys::limit_allocator();
    // As files: the standard library's own streams have buffers of their own in between.
    let file = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    file(io::stdin().as_fd())
        .and_then(|input| serve::serve(input, file(io::stdout().as_fd())?, Origin::of_process()))
        .map_err(AgentError::Sftp)
}
