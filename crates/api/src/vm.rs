//! Base images of virtual machines, and what machines keep on their nodes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /api/vm/images/{hostname}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmImages {
    pub images: Vec<VmImage>,
    /// Where they are on the node.
    pub images_dir: String,
}

/// A base image as the node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmImage {
    pub name: String,
    /// Below `images_dir`.
    pub filename: String,
    /// What it takes in shared storage.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub modified_at: f64,
    /// The disk that a machine made of it has at least.
    pub virtual_size_bytes: u64,
}

/// Answer of `GET /api/vps/vm-instances`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstances {
    pub nodes: Vec<VmNode>,
    pub summary: VmSummary,
}

/// The machines of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmNode {
    pub hostname: String,
    /// `online` or `unreachable`.
    pub status: String,
    /// Null where the node could not be asked.
    pub instances: Option<Vec<VmInstance>>,
    pub instances_dir: Option<String>,
    pub total_disk_usage_bytes: u64,
    /// Why the node could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What one machine keeps on its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstance {
    pub task_id: String,
    pub disk_usage_bytes: u64,
    pub files: Vec<String>,
    pub qemu_running: bool,
    pub qemu_pid: Option<u32>,
    /// Whether the node's runner knows it.
    pub in_task_store: bool,
    /// The VPS's status, or `orphaned` where there is no such VPS.
    pub db_status: String,
    pub task_metadata: Option<VmTask>,
}

/// The VPS that a machine belongs to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmTask {
    pub status: String,
    pub name: Option<String>,
    pub owner_id: Option<i64>,
    pub owner_username: Option<String>,
    pub vm_image: Option<String>,
    pub required_cores: u32,
    pub ssh_port: Option<u32>,
    pub submitted_at: Option<String>,
    pub assigned_node: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmSummary {
    pub total_instances: u64,
    pub orphaned_count: u64,
    pub total_disk_usage_bytes: u64,
}

/// Answer of `DELETE /api/vps/vm-instances/{task}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstanceDeleted {
    pub message: String,
    pub task_id: String,
    pub freed_bytes: u64,
}
