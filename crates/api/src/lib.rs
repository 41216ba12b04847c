//! The wire types of the HTTP API, shared by host and command line.
//!
//! Paths and field names are those of the original system, so that its clients keep working;
//! what is new follows the same style. Ids are strings in JSON. Times are ISO 8601 with a zone.
//! Unknown request fields are ignored, because existing clients send some that mean nothing here.

pub mod error;
pub mod node;
pub mod task;
pub mod vps;

pub use error::ErrorBody;
pub use node::{GpuInfo, JoinToken, JoinTokenRequest, Node};
pub use task::Task;
pub use vps::{AssignedNode, CreateVps, CreatedVps, Message};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/health`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub status: String,
    pub version: String,
    pub nodes_online: u32,
    pub nodes_total: u32,
    pub vps_running: u32,
}

/// Answer of `GET /api/auth/status`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuthStatus {
    pub auth_enabled: bool,
    pub session_expire_hours: Option<u32>,
}
