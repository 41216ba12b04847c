//! Files of the instance, served on standard input and output by a process of its own.
//!
//! The process is this same executable, started with the client's socket as its standard input
//! and output, so bytes do not pass through the agent. It works one request at a time with plain
//! system calls: its memory is a few buffers, whatever the size of a file or a tree. It runs as
//! root of the instance, as everything that the instance's owner does through the agent.
//!
//! ```text
//!  channel   messages in, messages out
//!  place     paths to open descriptors, which are all that is acted on
//!  look      list, stat, probe, walk, read
//!  write     partial file, then rename
//!  change    mkdir, rename, delete, symlink
//! ```

mod change;
mod channel;
mod failure;
mod look;
pub(crate) mod place;
mod write;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kohakuriver_agent_protocol::files::{Ask, FilesInput, FilesOutput};
use kohakuriver_net::Socket;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

pub(crate) use channel::{Broken, Channel, ended as channel_ended};
pub(crate) use failure::Outcome;

use crate::error::AgentError;
use crate::process::Children;

type FilesChannel = Channel<FilesInput, FilesOutput>;

/// Starts the server of `words` for a client, and waits for its end.
pub(crate) async fn serve_stream(
    children: &Children,
    words: &[OsString],
    stream: Socket,
) -> io::Result<()> {
    let input = stream.into_blocking_fd()?;
    let output = input.try_clone()?;
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    // A group of its own, by which the agent ends it.
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output));
    let (child, exit) = children.spawn(&mut command)?;
    // With our copies of the socket gone, the client sees the end when the child ends.
    drop((command, child));
    let _ = exit.await;
    Ok(())
}

/// Serves requests for files on standard input and output until the client is done.
pub fn files_server() -> Result<(), AgentError> {
    crate::sys::limit_allocator();
    // Modes are meant as they are said.
    umask(Mode::empty());
    // Two descriptors for every level of a tree.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let mut channel = Channel::default();
    let result = serve(&mut channel);
    if let Some(failed) = result.as_ref().err().and_then(Broken::told) {
        // An agent is as old as its instance: a newer client may ask what it does not know.
        let _ = channel.send(&FilesOutput::Failed(failed)).and_then(|()| channel.flush());
    }
    channel_ended(result).map_err(AgentError::Files)
}

fn serve(channel: &mut FilesChannel) -> Result<(), Broken> {
    while let Some(message) = channel.next()? {
        match message {
            FilesInput::Ask(ask) => answer(channel, ask)?,
            FilesInput::Data(_) | FilesInput::End | FilesInput::Abort => {
                return Err(Broken::OutOfTurn);
            }
        }
    }
    channel.flush()
}

fn answer(channel: &mut FilesChannel, ask: Ask) -> Result<(), Broken> {
    let outcome = match ask {
        Ask::List { path, limit } => return look::list(channel, path, limit),
        Ask::Walk { path } => return look::walk(channel, path),
        Ask::Read { path, offset, limit } => return look::read(channel, path, offset, limit),
        Ask::Write(write) => return write::write(channel, write),
        Ask::Stat { path, follow } => look::stat(path, follow).map(FilesOutput::Found),
        Ask::Probe { path } => look::probe(path).map(FilesOutput::Probed),
        Ask::ReadLink { path } => look::read_link(path).map(FilesOutput::Link),
        Ask::Mkdir { path, parents, mode } => done(change::mkdir(path, parents, mode)),
        Ask::Rename { from, to, overwrite } => done(change::rename(from, to, overwrite)),
        Ask::Delete { path, recursive } => done(change::delete(path, recursive)),
        Ask::Symlink { path, target } => done(change::symlink(path, target)),
        Ask::Sync { path } => done(change::sync(path)),
    };
    channel.send(&outcome.unwrap_or_else(FilesOutput::Failed))
}

fn done(outcome: Outcome<()>) -> Outcome<FilesOutput> {
    outcome.map(|()| FilesOutput::Done { more: false })
}
