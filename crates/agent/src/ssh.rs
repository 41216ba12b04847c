//! The SSH server of the instance.
//!
//! One connection is one russh session with one [`handler::Connection`]; every channel has one task, which owns the
//! channel's process or TCP connection and ends with it.

mod auth;
mod exec;
mod flow;
mod forward;
mod gate;
mod handler;
mod listener;
mod pty;
mod server;
mod session;
mod slots;
mod window;

/// Splits a command and forgets the words.
pub(crate) fn words(command: &[u8]) {
    let _ = exec::split_words(command);
}

pub(crate) use pty::{Master, PtyRequest, open as open_pty, window_size};
pub(crate) use server::{Peer, SshServer};
