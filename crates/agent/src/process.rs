//! Starting children and collecting every one that ends, ours or orphaned.

mod reaper;
mod socket;
mod spawn;

pub(crate) use reaper::{Children, Exit, ReapMode};
pub(crate) use socket::{connect_as, listen_as, remove_as};
pub(crate) use spawn::{Identity, Output, ProcessSpec, Started, Terminal, start};
