//! Creating and changing a VPS.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /api/vps/create`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateVps {
    #[serde(default)]
    pub name: Option<String>,
    /// CPU cores; 0 means no limit.
    #[serde(default = "one")]
    pub required_cores: i64,
    #[serde(default)]
    pub required_gpus: Option<Vec<u32>>,
    /// Memory in bytes: a container's limit, or a virtual machine's memory where `memory_mb` is not
    /// given.
    #[serde(default)]
    pub required_memory_bytes: Option<i64>,
    /// Node to run on; the host chooses by default.
    #[serde(default)]
    pub target_hostname: Option<String>,
    #[serde(default)]
    pub target_numa_node_id: Option<u32>,
    /// Environment of the shared storage.
    #[serde(default)]
    pub container_name: Option<String>,
    /// Registry image; excludes `container_name`.
    #[serde(default)]
    pub registry_image: Option<String>,
    /// SSH access: `disabled` (default), `none` (SSH with the image's own keys only), `upload` or
    /// `generate`.
    #[serde(default = "disabled")]
    pub ssh_key_mode: String,
    /// Public keys for `upload`: one or more lines of `authorized_keys`.
    #[serde(default)]
    pub ssh_public_key: Option<String>,
    /// Backend: `docker` (default, unless `from_vps` is a virtual machine) or `qemu`.
    #[serde(default)]
    pub vps_backend: Option<String>,
    /// Base image of a virtual machine; `debian-12` by default.
    #[serde(default)]
    pub vm_image: Option<String>,
    /// Disk size of a virtual machine, for example `20G`; a plain number means GB. `20G` by
    /// default.
    #[serde(default)]
    pub vm_disk_size: Option<String>,
    /// Memory of a virtual machine in MB; 4096 by default, unless `required_memory_bytes` is given.
    #[serde(default)]
    pub memory_mb: Option<i64>,
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    #[serde(default)]
    pub pids_limit: Option<u32>,
    /// Number of GPUs, of which the host picks free ones; replaces `required_gpus`.
    #[serde(default)]
    pub gpu_count: Option<u32>,
    /// Labels that the node must have.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// VPS whose snapshot the disk is copied from, on the node that has the snapshot: an id, a
    /// unique id prefix or a name. Excludes both images.
    #[serde(default)]
    pub from_vps: Option<String>,
    /// Snapshot of `from_vps`: a tag or a name; the newest by default.
    #[serde(default)]
    pub from_snapshot: Option<String>,
    /// Whether each stop makes a snapshot.
    #[serde(default)]
    pub snapshot_on_stop: Option<bool>,
    /// Number of snapshots to retain; older ones are deleted. 0 retains all; 5 by default.
    #[serde(default)]
    pub keep_snapshots: Option<u32>,
    /// Behavior when the kernel kills a process for lack of memory: `end` (default) stops the VPS
    /// as `killed_oom`, `keep` continues without that process.
    #[serde(default)]
    pub on_oom: Option<String>,
    /// Whether root in the VPS has all rights of the node's root. Only for operators, on nodes
    /// whose owner allows it.
    #[serde(default)]
    pub privileged: Option<bool>,
    /// Mounts of the node's paths, each `SOURCE:TARGET` or `SOURCE:TARGET:ro`. Only for operators,
    /// on nodes whose owner allows these sources.
    #[serde(default)]
    pub additional_mounts: Option<Vec<String>>,
}

fn one() -> i64 {
    1
}

fn disabled() -> String {
    "disabled".to_owned()
}

impl Default for CreateVps {
    fn default() -> Self {
        Self {
            name: None,
            required_cores: 0,
            required_gpus: None,
            required_memory_bytes: None,
            target_hostname: None,
            target_numa_node_id: None,
            container_name: None,
            registry_image: None,
            ssh_key_mode: disabled(),
            ssh_public_key: None,
            vps_backend: None,
            vm_image: None,
            vm_disk_size: None,
            memory_mb: None,
            env_vars: BTreeMap::new(),
            pids_limit: None,
            gpu_count: None,
            node_labels: BTreeMap::new(),
            from_vps: None,
            from_snapshot: None,
            snapshot_on_stop: None,
            keep_snapshots: None,
            on_oom: None,
            privileged: None,
            additional_mounts: None,
        }
    }
}

/// Body of `PATCH /api/vps/{task}`; omitted fields keep their values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateVps {
    /// CPU cores; 0 means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_cores: Option<i64>,
    /// Memory in bytes; 0 means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_memory_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_on_stop: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_snapshots: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_oom: Option<String>,
    /// Public keys to add, one a line; they are valid from the next login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_ssh_keys: Option<String>,
    /// Keys to remove: fingerprints, comments, or the keys themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_ssh_keys: Option<Vec<String>>,
}

/// A public key that may log in to a VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshKey {
    /// Fingerprint as ssh-keygen prints it, `SHA256:...`.
    pub fingerprint: String,
    pub algorithm: String,
    pub comment: String,
    pub public_key: String,
}

/// Response of `POST /api/vps/create`. With `?wait=false` it is sent at once, with `status`
/// `assigning`; otherwise when the VPS runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreatedVps {
    pub message: String,
    pub task_id: String,
    pub vps_backend: String,
    pub ssh_key_mode: String,
    pub ssh_port: u32,
    pub assigned_node: AssignedNode,
    pub status: String,
    /// The runner's response in the original API's form.
    #[serde(default)]
    pub runner_response: RunnerResponse,
    /// IP address of a virtual machine on its node, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_ip: Option<String>,
    /// The created VPS.
    pub task: crate::Task,
    /// Private key for `generate`. It is never stored, and no later response contains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_public_key: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunnerResponse {
    pub success: bool,
    pub ssh_port: u32,
    /// Name of the container; empty for a virtual machine.
    pub container_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_ip: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssignedNode {
    pub hostname: String,
    pub url: Option<String>,
}

/// Response of every operation on a VPS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    pub message: String,
    pub task_id: String,
}

/// An event of a VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Event id, increasing and unique in the cluster.
    pub id: i64,
    pub task_id: String,
    pub at: String,
    /// Requested operation (`create`, `stop`, `kill`, `restart`, `restore`, `pause`, `resume`,
    /// `update`, `delete`, `snapshot`, ...) or observation (`running`, `paused`, `stopped`,
    /// `failed`, `oom`, `lost`, `found`, `deleted`).
    pub kind: String,
    /// Account that made the request, as far as known, or `node NAME`, or `host`.
    pub actor: String,
    /// Details as text; may be empty.
    pub detail: String,
}
