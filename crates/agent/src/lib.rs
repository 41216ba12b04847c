//! The process inside every instance: SSH, SFTP, files, port relays and the reaping of orphans.
//!
//! The runner starts [`run`] as PID 1 of a container whose image may hold nothing at all, and reaches it over one
//! unix socket. A connection opens with one line of JSON ([`StreamTarget`](kohakuriver_agent_protocol::StreamTarget)), is answered with one ([`StreamReply`](kohakuriver_agent_protocol::StreamReply)),
//! and from then on carries raw bytes.
//!
//! In a virtual machine [`run_guest`] is a service beside others. It takes its settings from the seed disk and listens on
//! a port of the guest, where the runner proves the instance's secret first.

mod config;
mod error;
mod exec;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod launch;
mod locale;
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
pub use guest::{GUEST_SECRET_FILE, SEED_DIR};
pub use serve::{AgentOptions, run, run_guest, run_with};
pub use sftp::sftp_server;
pub use watch::watch_server;
