//! The task object: a VPS as `/api/status/{id}`, `/api/vps` and `/api/vps/status` return it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A task. Fields up to `completed_at` are the original API's; later fields are additions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Task {
    pub task_id: String,
    /// Always `vps`; `command` is reserved.
    pub task_type: String,
    pub batch_id: Option<String>,
    pub name: Option<String>,
    pub owner_id: Option<i64>,
    pub owner_username: Option<String>,
    /// Users with a share of any level.
    pub assignees: Vec<Assignee>,
    pub approval_status: Option<String>,
    pub approved_by_id: Option<i64>,
    pub approved_by_username: Option<String>,
    pub approved_at: Option<String>,
    pub rejection_reason: Option<String>,
    pub command: String,
    pub arguments: Vec<String>,
    pub env_vars: BTreeMap<String, String>,
    /// CPU cores; 0 means no limit.
    pub required_cores: u32,
    pub required_gpus: Vec<u32>,
    pub required_memory_bytes: Option<u64>,
    pub target_numa_node_id: Option<u32>,
    /// Status, for example `running`.
    pub status: String,
    pub assigned_node: Option<String>,
    pub container_name: Option<String>,
    pub docker_image_name: Option<String>,
    pub docker_privileged: bool,
    pub docker_mount_dirs: Vec<String>,
    /// SSH port; 0 for a VPS without SSH.
    pub ssh_port: Option<u32>,
    /// Backend: `docker` or `qemu`.
    pub vps_backend: String,
    pub vm_image: Option<String>,
    /// Disk size, for example `20G`.
    pub vm_disk_size: Option<String>,
    /// IP address of a virtual machine on its node.
    pub vm_ip: Option<String>,
    pub stdout_path: String,
    pub stderr_path: String,
    pub exit_code: Option<i64>,
    pub error_message: Option<String>,
    pub submitted_at: Option<String>,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,

    /// Revision, which grows with every change of the task; pass it as `?since=` to wait for the
    /// next change.
    pub revision: u64,
    /// Desired state: `running`, `paused`, `stopped`, `killed` or `deleted`.
    pub desired: String,
    /// Operation in progress: `starting`, `stopping`, `killing`, `pausing`, `resuming`,
    /// `restarting`, `restoring`, `updating` or `deleting`.
    pub transition: Option<String>,
    /// Time at which the operation in progress was requested.
    pub transition_since: Option<String>,
    /// Provisioning step in progress, for example `pulling debian:12`.
    pub progress: Option<String>,
    pub progress_percent: Option<u8>,
    /// Error code, where `status` is `failed`.
    pub error_code: Option<String>,
    pub error_hint: Option<String>,
    /// SSH host key of the instance, as one OpenSSH public key line.
    pub ssh_host_key: Option<String>,
    pub pids_limit: Option<u32>,
    /// Condition that does not prevent the VPS from running, such as limits that apply from the
    /// next start.
    pub warning: Option<String>,
    /// UUIDs of the GPUs, in the order of `required_gpus`.
    pub gpu_uuids: Vec<String>,
    /// Snapshot that the disk was created from, `<task id>:<tag>`.
    pub from_snapshot: Option<String>,
    pub snapshot_on_stop: bool,
    pub keep_snapshots: u32,
    /// Behavior when the kernel kills a process for lack of memory: `end` or `keep`. Empty for a
    /// virtual machine, whose own kernel decides.
    pub on_oom: String,
    /// Shares of the VPS, with their levels.
    pub shares: Vec<Share>,
    /// The caller's access: `owner`, `view`, `use`, `manage`, or the caller's role.
    pub access: Option<String>,
    /// Requested node, while the request waits for approval.
    pub requested_node: Option<String>,
    /// Requested number of GPUs, while the request waits for approval.
    pub gpu_count: Option<u32>,
    /// Reference by which the caller can name the VPS: its name where the caller or no account owns
    /// it, the alias under which the caller took a share, `NAME.OWNER` of another account's VPS, or
    /// its id where it has no name.
    pub reference: String,
    /// Whether the caller took the share, for a VPS that is shared with the caller.
    pub taken: Option<bool>,
    /// Account that the VPS is offered to; only callers that may transfer the VPS receive it.
    pub offered_to: Option<String>,
    /// Revision that an approval passes as `?revision=` to approve exactly this request.
    pub approval_revision: Option<String>,
}

/// A user with a share of a VPS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Assignee {
    pub id: i64,
    pub username: String,
    pub display_name: String,
}

/// A share of a VPS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Share {
    /// Recipient: `user` or `group`.
    pub kind: String,
    pub name: String,
    /// Level: `view`, `use` or `manage`.
    pub level: String,
    /// The user's response: `offered` (none yet), `taken` or `declined`. Empty for a group.
    pub state: String,
}
