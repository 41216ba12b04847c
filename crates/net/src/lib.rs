//! What every part needs of the network: names to addresses without the C library's resolver
//! (the executable is static), and copying bytes between two streams.

mod relay;
mod resolve;
mod splice;

pub use relay::{copy, relay};
pub use resolve::{connect, resolve};
pub use splice::{Socket, relay_sockets};
