//! What every part needs of the network and of the machine's files of names: host names to addresses
//! and users to ids without the C library (the executable is static, and its resolver and user
//! database would load modules), and copying bytes between two streams.

mod block;
mod early;
mod files;
mod gather;
#[cfg(feature = "http")]
mod http_names;
mod memory;
pub mod passwd;
mod pieces;
mod quiet;
mod relay;
mod resolve;
mod socket;
mod splice;

pub use early::Early;
pub use files::raise_file_limit;
#[cfg(feature = "http")]
pub use http_names::HttpNames;
pub use memory::return_free_memory;
pub use pieces::Pieces;
pub use quiet::{Quiet, QuietSocket};
pub use relay::{copy, relay};
pub use resolve::{connect, resolve};
pub use socket::{DetachedSocket, Socket, SocketReader, SocketWriter};
pub use splice::relay_sockets;
