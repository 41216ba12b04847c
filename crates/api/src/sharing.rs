//! Shares and offers: what others let an account have, and what it answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `PUT /api/vps/{task}/shares`: either a user or a group.
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

/// Answer of `POST /api/vps/{task}/assign`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assigned {
    pub message: String,
    /// A number here, as existing clients know it.
    pub task_id: u64,
    pub assigned_users: Vec<i64>,
}

/// Answer of `GET /api/vps/{task}/assignments`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assignments {
    /// A number here, as existing clients know it.
    pub task_id: u64,
    pub assignments: Vec<Assignment>,
}

/// A user whom a VPS is shared with.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assignment {
    pub user_id: i64,
    pub username: String,
    /// The user name again, where the caller may not read displayed names.
    pub display_name: String,
    pub assigned_at: String,
    #[serde(default)]
    pub level: String,
    /// What the user answered: `offered` (nothing yet), `taken` or `declined`.
    #[serde(default)]
    pub state: String,
}

/// Answer of `GET /api/vps/shares`: what others let the caller have.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Received {
    /// What is shared with the caller, newest first.
    pub shares: Vec<ReceivedShare>,
    /// What others offer to give to the caller, newest first.
    pub offers: Vec<ReceivedOffer>,
}

/// A VPS that is shared with the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ReceivedShare {
    pub task_id: String,
    pub name: Option<String>,
    pub owner_username: Option<String>,
    /// What the caller can call it now: an alias, `NAME.OWNER`, or its id.
    pub reference: String,
    /// `view`, `use` or `manage`.
    pub level: String,
    /// The groups by which it reaches the caller.
    pub groups: Vec<String>,
    /// `offered` (not answered yet), `taken` or `declined`.
    pub state: String,
    pub shared_at: String,
}

/// A VPS that its owner, or an admin, offers to the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ReceivedOffer {
    pub task_id: String,
    pub name: Option<String>,
    pub owner_username: Option<String>,
    /// What the caller can call it: `NAME.OWNER`, or its id.
    pub reference: String,
    /// The account that made the offer.
    pub offered_by: String,
    pub offered_at: String,
    /// When the offer ends by itself.
    pub expires_at: String,
    /// `docker` or `qemu`.
    pub vps_backend: String,
    /// What it counts against the caller's quota while it runs; 0 = no limit.
    pub required_cores: u32,
    pub required_memory_bytes: Option<u64>,
    pub gpu_count: u32,
    /// Of a virtual machine.
    pub disk_bytes: Option<u64>,
}

/// Body of `POST /api/vps/shares/{task}/take`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TakeShare {
    /// What the caller will call it; `NAME.OWNER` without one.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}
