//! The SSH server of the instance.
//!
//! One connection is one thread ([`in_place`]) and one russh session with one [`handler::Connection`]; every channel
//! has one task, which owns the channel's process or TCP connection and ends with it.

mod auth;
mod certificate;
mod exec;
mod flow;
mod forward;
mod gate;
mod handler;
mod inline_executor;
mod listener;
mod server;
mod session;
mod sftp;
mod slots;
mod window;

pub(crate) use server::{Peer, SshServer};

/// Splits a command and forgets the words.
pub(crate) fn words(command: &[u8]) {
    let _ = exec::split_words(command);
}
