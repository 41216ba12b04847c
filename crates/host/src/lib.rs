//! The host: cluster state, the HTTP API, the SSH gateway and the runners' link.
//!
//! ```text
//!   http (:8000) ──┐                      ┌── store (SQLite)
//!   gateway (:8002)┼─> instances, access ─┤
//!   link_server ───┘   (decisions)        └── runner_registry (connected runners)
//!     (:8001)
//! ```
//!
//! A request changes the *intent* in the store and wakes the node's link, nothing else; the runner
//! converges and reports its observation; the *status* that clients read is computed from both. So
//! a crash between any two steps loses nothing: the next hello synchronizes both sides.
//!
//! To add an endpoint: wire types in `kohakuriver-api`, a handler with its `#[utoipa::path]` in the
//! resource's file under `http/`, a line in that file's `routes()`, and a row in
//! `access/routes.rs`. The OpenAPI document is generated from the same macro, so it cannot drift.

mod access;
mod accounts;
mod audit;
mod client_address;
mod clock;
mod config;

mod authorized_keys_sync;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod host;
mod http;
mod https;
mod instances;
mod join;
mod limits;
mod link_server;
mod oidc;
mod orders;
mod pace;
mod present;
mod runner_registry;
mod slots;
mod ssh_ca;
mod ssh_keys;

mod sessions;
mod supervise;
mod watch;

pub use access::routes::{lasting_rows, policy_rows};
pub use accounts::AuthConfig;
pub use clock::{Clock, ManualClock};
pub use config::{Deadlines, History, HostConfig};
pub use host::{Host, StartError};
pub use https::{HttpsMode, TlsError};
pub use ipnet::IpNet;
pub use kohakuriver_store::{AuditLimits, EventLimits};
pub use oidc::{OidcConfig, is_safe_url};
pub use runner_registry::LocalNode;
