//! Network helpers that every part shares: resolving host names and user names without the C library (the
//! executable is static, and its resolver and user database would load modules), and copying bytes
//! between two streams.

mod buf_list;
mod coalesce;
mod files;
#[cfg(feature = "http")]
mod http_names;
mod lazy_write;
mod memory;
pub mod passwd;
mod pooled_buf;
mod prefixed;
mod relay;
mod resolve;
mod socket;
mod splice;

pub use buf_list::BufList;
pub use files::raise_file_limit;
#[cfg(feature = "http")]
pub use http_names::HttpNames;
pub use lazy_write::{IntoLazyWrite, LazyWriteSocket};
pub use memory::return_free_memory;
pub use prefixed::Prefixed;
pub use relay::{copy, relay};
pub use resolve::{connect, resolve};
pub use socket::{DetachedSocket, Socket, SocketReader, SocketWriter};
pub use splice::relay_sockets;
