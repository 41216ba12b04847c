//! The task object: a VPS as `/api/status/{id}`, `/api/vps` and `/api/vps/status` show it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A task. Fields up to `completed_at` are the original API's; the rest is ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Task {
    pub task_id: String,
    /// `vps` (or `command`, later).
    pub task_type: String,
    pub batch_id: Option<String>,
    pub name: Option<String>,
    pub owner_id: Option<i64>,
    pub owner_username: Option<String>,
    /// The users it is shared with, whatever the level.
    pub assignees: Vec<Assignee>,
    pub approval_status: Option<String>,
    pub approved_by_id: Option<i64>,
    pub approved_by_username: Option<String>,
    pub approved_at: Option<String>,
    pub rejection_reason: Option<String>,
    pub command: String,
    pub arguments: Vec<String>,
    pub env_vars: BTreeMap<String, String>,
    /// 0 = no limit.
    pub required_cores: u32,
    pub required_gpus: Vec<u32>,
    pub required_memory_bytes: Option<u64>,
    pub target_numa_node_id: Option<u32>,
    /// One of the status words, for example `running`.
    pub status: String,
    pub assigned_node: Option<String>,
    pub container_name: Option<String>,
    pub docker_image_name: Option<String>,
    pub docker_privileged: bool,
    pub docker_mount_dirs: Vec<String>,
    /// 0 = a VPS without SSH.
    pub ssh_port: Option<u32>,
    /// `docker` or `qemu`.
    pub vps_backend: String,
    pub vm_image: Option<String>,
    /// For example `20G`.
    pub vm_disk_size: Option<String>,
    /// A virtual machine's address on its node.
    pub vm_ip: Option<String>,
    pub stdout_path: String,
    pub stderr_path: String,
    pub exit_code: Option<i64>,
    pub error_message: Option<String>,
    pub submitted_at: Option<String>,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,

    /// Grows with every change of this task; pass it as `?since=` to wait for the next one.
    pub revision: u64,
    /// What it should be: `running`, `paused`, `stopped`, `killed` or `deleted`.
    pub desired: String,
    /// What is under way: `starting`, `stopping`, `killing`, `pausing`, `resuming`, `restarting`,
    /// `restoring`, `updating`, `deleting`.
    pub transition: Option<String>,
    /// When that was asked.
    pub transition_since: Option<String>,
    /// What provisioning is doing, for example `pulling debian:12`.
    pub progress: Option<String>,
    pub progress_percent: Option<u8>,
    /// For programs, where `status` is `failed`.
    pub error_code: Option<String>,
    pub error_hint: Option<String>,
    /// The instance's SSH host key, one OpenSSH public key line.
    pub ssh_host_key: Option<String>,
    pub pids_limit: Option<u32>,
    /// Something to know while all is as wished, such as limits that wait for the next start.
    pub warning: Option<String>,
    /// The GPUs' own identities, in the order of `required_gpus`.
    pub gpu_uuids: Vec<String>,
    /// The snapshot its disk was made from, `<task id>:<tag>`.
    pub from_snapshot: Option<String>,
    pub snapshot_on_stop: bool,
    pub keep_snapshots: u32,
    /// `end` or `keep`; empty for a virtual machine, whose own kernel decides.
    pub on_oom: String,
    /// With whom it is shared, and how much of it.
    pub shares: Vec<Share>,
    /// What the caller is to it: `owner`, `view`, `use`, `manage`, or their role.
    pub access: Option<String>,
    /// Of a request: the node that was asked for.
    pub requested_node: Option<String>,
    /// Of a request: how many GPUs were asked for.
    pub gpu_count: Option<u32>,
    /// What the caller calls it: its name where it is theirs or belongs to no account, the alias
    /// under which they took it, `NAME.OWNER` of another's, or its id where it has no name.
    pub reference: String,
    /// Of a VPS that is shared with the caller: whether they took the share.
    pub taken: Option<bool>,
    /// The account it is offered to; present for accounts that may give the VPS away.
    pub offered_to: Option<String>,
    /// Of a request: what an approval of exactly this names, as `?revision=`.
    pub approval_revision: Option<String>,
}

/// A user whom a VPS is shared with.
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
    /// `user` or `group`.
    pub kind: String,
    pub name: String,
    /// `view`, `use` or `manage`.
    pub level: String,
    /// What the user answered: `offered` (nothing yet), `taken` or `declined`. Empty for a group.
    pub state: String,
}
