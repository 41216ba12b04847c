//! The runner: one process per node that converges its instances to the host's orders.
//!
//! ```text
//!   host <==== control link ====> session ---- orders ----> supervisor: one driver per instance
//!                                    ^                          |  ledger (intent, on disk)
//!                                    |                          |  plan   (pure: what next?)
//!                                    +---- observation board <--+  backend (Docker)
//!   host <==== data links ======> data pool ---- agent socket ----> agent inside the instance
//! ```
//!
//! After any failure at any moment (kill -9, reboot, a lost link or engine), the driver inspects the
//! ledger and the backend again and the plan converges to the intent. The absence of the host
//! changes nothing for running instances.

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
