//! What every part needs of the network: names to addresses without the C library's resolver
//! (the executable is static), and copying bytes between two streams.

mod block;
mod early;
mod files;
mod gather;
mod pieces;
mod quiet;
mod relay;
mod resolve;
mod socket;
mod splice;

pub use early::Early;
pub use files::raise_file_limit;
pub use pieces::Pieces;
pub use quiet::{Quiet, QuietSocket};
pub use relay::{copy, relay};
pub use resolve::{connect, resolve};
pub use socket::{DetachedSocket, Socket, SocketReader, SocketWriter};
pub use splice::relay_sockets;
