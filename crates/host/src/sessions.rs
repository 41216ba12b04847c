//! Access to the inside of instances: opening a stream, and ending it when the right to it ends.
//!
//! ```text
//!  SSH gateway, terminals, forwards, files ──open──> streams ──> runner ──> agent
//!                                             │
//!                                          registry: ends sessions whose account lost the right
//! ```

pub mod open;
pub mod registry;
pub mod streams;
