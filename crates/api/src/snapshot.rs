//! Snapshots of a VPS.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A snapshot. Fields up to `created_at` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Snapshot {
    pub tag: String,
    /// A number, as the original sends it here.
    pub task_id: u64,
    /// The second since 1970 it was made in; the tag as a number.
    pub timestamp: u64,
    /// Bytes, with the image below it.
    pub size: u64,
    pub created_at: String,

    pub name: Option<String>,
    pub message: String,
    /// Bytes it adds to what is below it.
    pub own_size: u64,
    /// The disk of a VPS is built on it, so it cannot be deleted now.
    pub in_use: bool,
}

/// Answer of `GET /api/vps/snapshots/{task}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SnapshotList {
    pub task_id: u64,
    /// Newest first.
    pub snapshots: Vec<Snapshot>,
    pub count: u64,
}

/// Answer of `POST /api/vps/snapshots/{task}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCreated {
    pub message: String,
    pub tag: String,
    pub snapshot: Snapshot,
}

/// Answer of `GET /api/vps/snapshots/{task}/latest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LatestSnapshot {
    pub task_id: u64,
    pub tag: String,
}

/// Answer of `DELETE /api/vps/snapshots/{task}` and `.../{tag}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsDeleted {
    pub message: String,
    #[serde(default)]
    pub deleted_count: u64,
}
