//! Snapshots of a VPS.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A snapshot. Fields up to `created_at` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Snapshot {
    pub tag: String,
    /// Id of the VPS as a number, as the original API sends it.
    pub task_id: u64,
    /// Creation time in seconds since 1970; the tag as a number.
    pub timestamp: u64,
    /// Size in bytes, including the image below it.
    pub size: u64,
    pub created_at: String,

    pub name: Option<String>,
    pub message: String,
    /// Bytes that the snapshot adds to the layers below it.
    pub own_size: u64,
    /// Whether a VPS's disk is built on the snapshot, so that it cannot be deleted now.
    pub in_use: bool,
}

/// Response of `GET /api/vps/snapshots/{task}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SnapshotList {
    pub task_id: u64,
    /// Snapshots, newest first.
    pub snapshots: Vec<Snapshot>,
    pub count: u64,
}

/// Response of `POST /api/vps/snapshots/{task}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCreated {
    pub message: String,
    pub tag: String,
    pub snapshot: Snapshot,
}

/// Response of `GET /api/vps/snapshots/{task}/latest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LatestSnapshot {
    pub task_id: u64,
    pub tag: String,
}

/// Response of `DELETE /api/vps/snapshots/{task}` and `.../{tag}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsDeleted {
    pub message: String,
    #[serde(default)]
    pub deleted_count: u64,
}
