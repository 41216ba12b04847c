//! The process inside every instance: SSH, SFTP, files, port relays and the reaping of orphans.
//!
//! The runner starts [`run`] as PID 1 of a container whose image may hold nothing at all, and reaches it over one
//! unix socket. A connection opens with one line of JSON ([`StreamTarget`](kohakuriver_wire::StreamTarget)), is answered with one ([`StreamReply`](kohakuriver_wire::StreamReply)),
//! and from then on carries raw bytes.

mod config;
mod error;
mod exec;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod launch;
mod passwd;
mod process;
mod pty;
mod relay;
mod serve;
mod session;
mod sftp;
mod ssh;
mod sys;
mod watch;

pub use config::{AgentConfig, CONFIG_FILE, HOST_KEY_FILE, SOCKET_FILE};
pub use error::AgentError;
pub use files::files_server;
pub use serve::{AgentOptions, run, run_with};
pub use sftp::sftp_server;
pub use watch::watch_server;
