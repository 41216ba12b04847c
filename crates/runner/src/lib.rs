//! The runner: one process per machine that keeps its instances as the host wishes them.
//!
//! ```text
//!   host <==== control link ====> session ---- orders ----> fleet: one driver per instance
//!                                    ^                          |  ledger (intent, on disk)
//!                                    |                          |  plan   (pure: what next?)
//!                                    +---- observation board <--+  backend (Docker)
//!   host <==== data links ======> data pool ---- agent socket ----> agent inside the instance
//! ```
//!
//! Whatever happens at whatever moment (kill -9, reboot, a link or an engine that goes away),
//! the driver looks at the ledger and at the backend again and the plan converges to the wish.
//! The host being away changes nothing for what runs.

mod agent_files;
mod agent_stream;
mod backend;
mod clock;
mod data_pool;
mod driver;
mod inventory;
mod layout;
mod ledger;
mod lock;
mod observation_board;
mod plan;
mod runner;
mod session;
mod streams;
mod supervisor;

pub use agent_stream::AgentError;
pub use backend::docker::ContainerSettings;
pub use backend::qemu::MachineSettings;
pub use layout::Layout;
pub use lock::{DataDirLock, LockError, lock_data_dir};
pub use runner::{Runner, RunnerConfig, RunnerError};
pub use streams::Streams;
