//! Base images of virtual machines, and the files of virtual machines on their nodes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Response of `GET /api/vm/images/{hostname}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmImages {
    pub images: Vec<VmImage>,
    /// Directory of the images on the node.
    pub images_dir: String,
}

/// A base image that the node can use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmImage {
    pub name: String,
    /// File name inside `images_dir`.
    pub filename: String,
    /// Size in shared storage, in bytes.
    pub size_bytes: u64,
    /// Modification time in seconds since 1970.
    pub modified_at: f64,
    /// Smallest disk of a virtual machine that starts from the image, in bytes.
    pub virtual_size_bytes: u64,
}

/// Response of `GET /api/vps/vm-instances`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstances {
    pub nodes: Vec<VmNode>,
    pub summary: VmSummary,
}

/// Virtual machines of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmNode {
    pub hostname: String,
    /// `online` or `unreachable`.
    pub status: String,
    /// Virtual machines; null where the node did not respond.
    pub instances: Option<Vec<VmInstance>>,
    pub instances_dir: Option<String>,
    pub total_disk_usage_bytes: u64,
    /// Reason why the node did not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Files of one virtual machine on its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstance {
    pub task_id: String,
    pub disk_usage_bytes: u64,
    pub files: Vec<String>,
    pub qemu_running: bool,
    pub qemu_pid: Option<u32>,
    /// Whether the node's runner has a record of the virtual machine.
    pub in_task_store: bool,
    /// Status of the VPS; `orphaned` where the VPS does not exist.
    pub db_status: String,
    pub task_metadata: Option<VmTask>,
}

/// The VPS that the virtual machine belongs to.
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

/// Response of `DELETE /api/vps/vm-instances/{task}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VmInstanceDeleted {
    pub message: String,
    pub task_id: String,
    pub freed_bytes: u64,
}
