//! The truth on disk: nodes, join tokens, instances and what they hold.
//!
//! SQLite in WAL mode with foreign keys on. One connection writes, a few read. Every change is
//! one transaction that is visible in one function; it compares what it expected with what it
//! found and says [`StoreError::Stale`] where somebody was faster. An instance and its
//! allocations are written together, so no crash leaves one without the other.

mod allocations;
mod error;
mod events;
mod instances;
mod nodes;
mod open;
mod tokens;

pub use error::StoreError;
pub use events::{EventRow, NewEvent};
pub use instances::{Change, CreateError, InstanceRow, NewInstance, Resolve};
pub use nodes::NodeRow;
pub use open::Store;
pub use tokens::RedeemError;
