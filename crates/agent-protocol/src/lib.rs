//! The protocols on a stream into an instance.
//!
//! A stream runs from a client over the host and the runner to the agent inside the instance.
//! Host and runner only copy bytes; their meaning is agreed between the two ends and defined
//! here:
//!
//! ```text
//!  target      the bytes that follow
//!  ssh         the SSH protocol
//!  tcp         those of one TCP connection
//!  udp         datagrams of one flow                                     [udp]
//!  exec        one program: its streams, signals, window and exit        [exec]
//!  attach      the same, run by the container engine, not by the agent   [exec]
//!  session     a terminal that outlives its connections                  [session]
//!  files       requests for files, and answers                           [files]
//!  watch       news of changes to files                                  [watch]
//!  settings    new settings for a guest's agent, from the runner alone   [greeting]
//! ```
//!
//! A guest's agent is connected to by TCP; the connection begins with a proof [proof].
//!
//! Everything a peer sends is bounded before it is believed, and nothing here does input or
//! output except where a function says so: the codecs take bytes and give messages.

pub mod exec;
pub mod files;
mod frame;
pub mod gateway;
mod greeting;
mod host_key;
pub mod proof;
pub mod session;
mod target;
pub mod tunnel;
pub mod udp;
pub mod watch;

pub use frame::{
    FrameError, FrameReader, MAX_PAYLOAD, Message, decode_all, finish, missing, take, write,
};
pub use greeting::{
    MAX_LINE, StreamReply, WireError, read_reply, read_request, write_reply, write_request,
};
pub use host_key::host_keys;
pub use proof::{GUEST_PORT, GuestSecret};
pub use target::StreamTarget;
