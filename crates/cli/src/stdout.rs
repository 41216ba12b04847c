//! Writes to standard output, and ends a command whose output is lost.
//!
//! The first write that fails is remembered here and ends the command at its next step: quietly
//! where the reader has gone (`| head`), as SIGPIPE ends other programs, and with an error for
//! everything else, such as a full disk. `clippy.toml` forbids every other way to the descriptor.

use std::future::pending;
use std::io::{self, IsTerminal, Stdout, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Notify, oneshot};

use crate::error::CommandError;

/// The first write error of this process.
static LOST: Mutex<Option<CommandError>> = Mutex::new(None);
static NOTIFY: Notify = Notify::const_new();

/// The descriptor, for callers that inspect it or pass it on. They write nothing to it.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn descriptor() -> Stdout {
    io::stdout()
}

pub fn is_terminal() -> bool {
    descriptor().is_terminal()
}

/// Writes all bytes. A failure is also the command's: see [`failed`] and [`finish`].
///
/// # Errors
/// Standard output accepts no more, now or since an earlier write.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    if LOST.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    write_all(descriptor().as_fd(), bytes).inspect_err(note)
}

/// Writes the output of `print` with the library's own handle, as clap prints its help.
///
/// # Errors
/// The error of the write.
pub fn printed(print: impl FnOnce() -> io::Result<()>) -> Result<(), CommandError> {
    let written = print().and_then(|()| descriptor().flush());
    written.map_err(|error| CommandError::output(&error))
}

/// Waits for a write that fails.
pub async fn failed() -> CommandError {
    let waiting = NOTIFY.notified();
    match lost() {
        Some(failure) => failure,
        None => {
            waiting.await;
            lost().unwrap_or_else(CommandError::reported)
        }
    }
}

/// Waits until the reader has gone, also while nothing is written.
pub async fn reader_gone() -> CommandError {
    let (tell, told) = oneshot::channel();
    // It may wait for ever and ends with the process.
    thread::spawn(move || {
        if has_hung_up() {
            let _ = tell.send(());
        }
    });
    match told.await {
        Ok(()) => CommandError::output(&io::ErrorKind::BrokenPipe.into()),
        Err(_) => pending().await,
    }
}

/// Polls without events: the kernel reports errors and hang-ups anyway, and nothing for a file or
/// an open terminal.
fn has_hung_up() -> bool {
    let stdout = descriptor();
    loop {
        let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Ok(_) => {
                let [watched] = watched;
                let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
                return watched.revents().is_some_and(|events| events.intersects(gone));
            }
            Err(_) => return false,
        }
    }
}

/// Ends the command's output.
///
/// # Errors
/// Some output was not written.
pub fn finish() -> Result<(), CommandError> {
    // Some file systems say only here that there was no room.
    if let Ok(copy) = descriptor().as_fd().try_clone_to_owned()
        && let Err(error) = nix::unistd::close(copy)
    {
        note(&error.into());
    }
    lost().map_or(Ok(()), Err)
}

fn lost() -> Option<CommandError> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(error: &io::Error) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.get_or_insert_with(|| CommandError::output(error));
    NOTIFY.notify_waiters();
}

/// Writes directly to the descriptor: the library's buffer would hold back text without a newline.
pub fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match nix::unistd::write(fd, data) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Another program that shares the descriptor may have made it non-blocking.
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
