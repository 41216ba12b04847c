//! Two things every part needs of the network: names to addresses without the C library's
//! resolver (the executable is static), and copying bytes between two streams.

mod relay;
mod resolve;

pub use relay::{BUFFER_BYTES, relay};
pub use resolve::{connect, resolve};
