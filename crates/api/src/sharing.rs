//! Shares and offers between accounts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `PUT /api/vps/{task}/shares`; names either a user or a group.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetShare {
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub group: Option<String>,
    /// `view`, `use` or `manage`.
    pub level: String,
}

/// Body of `POST /api/vps/{task}/owner`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetOwner {
    /// The account that may take the VPS.
    pub user: String,
}

/// Response of `POST /api/vps/{task}/assign`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assigned {
    pub message: String,
    /// Id of the VPS as a number, for existing clients.
    pub task_id: u64,
    pub assigned_users: Vec<i64>,
}

/// Response of `GET /api/vps/{task}/assignments`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assignments {
    /// Id of the VPS as a number, for existing clients.
    pub task_id: u64,
    pub assignments: Vec<Assignment>,
}

/// A user with a share of a VPS.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assignment {
    pub user_id: i64,
    pub username: String,
    /// Display name; the user name where the caller may not read display names.
    pub display_name: String,
    pub assigned_at: String,
    #[serde(default)]
    pub level: String,
    /// The user's response: `offered` (none yet), `taken` or `declined`.
    #[serde(default)]
    pub state: String,
}

/// Response of `GET /api/vps/shares`: shares and offers that the caller has received.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Received {
    /// Shares that the caller has received, newest first.
    pub shares: Vec<ReceivedShare>,
    /// VPSes that are offered to the caller, newest first.
    pub offers: Vec<ReceivedOffer>,
}

/// A VPS that is shared with the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ReceivedShare {
    pub task_id: String,
    pub name: Option<String>,
    pub owner_username: Option<String>,
    /// Reference by which the caller can name the VPS now: an alias, `NAME.OWNER`, or its id.
    pub reference: String,
    /// `view`, `use` or `manage`.
    pub level: String,
    /// Groups through which the caller has the share.
    pub groups: Vec<String>,
    /// The caller's response: `offered` (none yet), `taken` or `declined`.
    pub state: String,
    pub shared_at: String,
}

/// A VPS that its owner or an admin offers to the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ReceivedOffer {
    pub task_id: String,
    pub name: Option<String>,
    pub owner_username: Option<String>,
    /// Reference by which the caller can name the VPS: `NAME.OWNER`, or its id.
    pub reference: String,
    /// The account that made the offer.
    pub offered_by: String,
    pub offered_at: String,
    /// Time at which the offer expires.
    pub expires_at: String,
    /// `docker` or `qemu`.
    pub vps_backend: String,
    /// Cores that count against the caller's quota while the VPS runs; 0 means no limit.
    pub required_cores: u32,
    pub required_memory_bytes: Option<u64>,
    pub gpu_count: u32,
    /// Disk size of a virtual machine, in bytes.
    pub disk_bytes: Option<u64>,
}

/// Body of `POST /api/vps/shares/{task}/take`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TakeShare {
    /// Name by which the caller will refer to the VPS; `NAME.OWNER` by default.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}
