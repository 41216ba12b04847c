//! Creating and changing a VPS.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /api/vps/create`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateVps {
    #[serde(default)]
    pub name: Option<String>,
    /// 0 = no limit.
    #[serde(default = "one")]
    pub required_cores: i64,
    #[serde(default)]
    pub required_gpus: Option<Vec<u32>>,
    /// A container's limit; a virtual machine's memory, unless `memory_mb` says it.
    #[serde(default)]
    pub required_memory_bytes: Option<i64>,
    /// None: placement chooses.
    #[serde(default)]
    pub target_hostname: Option<String>,
    #[serde(default)]
    pub target_numa_node_id: Option<u32>,
    /// An environment of shared storage.
    #[serde(default)]
    pub container_name: Option<String>,
    /// An image of a registry; excludes `container_name`.
    #[serde(default)]
    pub registry_image: Option<String>,
    /// `disabled` (no SSH), `none` (SSH with the image's own keys only), `upload`, `generate`.
    #[serde(default = "disabled")]
    pub ssh_key_mode: String,
    /// For `upload`: one or several lines of `authorized_keys`.
    #[serde(default)]
    pub ssh_public_key: Option<String>,
    /// `docker` (unless given, or `from_vps` is a virtual machine) or `qemu`.
    #[serde(default)]
    pub vps_backend: Option<String>,
    /// Base image of a virtual machine; `debian-12` unless given.
    #[serde(default)]
    pub vm_image: Option<String>,
    /// Size of a virtual machine's disk, for example `20G`; a plain number means GB. 20G unless
    /// given.
    #[serde(default)]
    pub vm_disk_size: Option<String>,
    /// A virtual machine's memory in MB; 4096 unless it or `required_memory_bytes` is given.
    #[serde(default)]
    pub memory_mb: Option<i64>,
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    #[serde(default)]
    pub pids_limit: Option<u32>,
    /// So many GPUs, whichever are free; instead of `required_gpus`.
    #[serde(default)]
    pub gpu_count: Option<u32>,
    /// Only nodes that carry all of these labels.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// Its disk is a copy of this VPS's snapshot, on the node that has it: an id, a unique id
    /// prefix or a name. Excludes both images.
    #[serde(default)]
    pub from_vps: Option<String>,
    /// Which snapshot of `from_vps`: a tag, a name, or the newest where it is left out.
    #[serde(default)]
    pub from_snapshot: Option<String>,
    /// Whether each stop makes a snapshot.
    #[serde(default)]
    pub snapshot_on_stop: Option<bool>,
    /// The oldest snapshots beyond this many go; 0 keeps all, 5 unless given.
    #[serde(default)]
    pub keep_snapshots: Option<u32>,
    /// `end` (unless given): the VPS ends as `killed_oom` when the kernel kills one of its
    /// processes for lack of memory. `keep`: only that process is gone.
    #[serde(default)]
    pub on_oom: Option<String>,
    /// Root inside is root of the node. For operators, on nodes whose owner allows it.
    #[serde(default)]
    pub privileged: Option<bool>,
    /// Paths of the node, each `SOURCE:TARGET` or `SOURCE:TARGET:ro`. For operators, on nodes whose
    /// owner allows these sources.
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

/// Body of `PATCH /api/vps/{task}`: what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UpdateVps {
    /// 0 = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_cores: Option<i64>,
    /// 0 = no limit.
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
    /// Lines of public keys that may log in from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_ssh_keys: Option<String>,
    /// Keys that may no longer: fingerprints, comments, or the keys themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_ssh_keys: Option<Vec<String>>,
}

/// A public key that may log in to a VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshKey {
    /// `SHA256:...`, as ssh-keygen shows it.
    pub fingerprint: String,
    pub algorithm: String,
    pub comment: String,
    pub public_key: String,
}

/// Answer of `POST /api/vps/create`. With `?wait=false` it comes at once, `status` `assigning`;
/// without it, when the VPS runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreatedVps {
    pub message: String,
    pub task_id: String,
    pub vps_backend: String,
    pub ssh_key_mode: String,
    pub ssh_port: u32,
    pub assigned_node: AssignedNode,
    pub status: String,
    /// What the original's clients read here.
    #[serde(default)]
    pub runner_response: RunnerResponse,
    /// A virtual machine's address on its node, where it has one already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_ip: Option<String>,
    /// The VPS itself.
    pub task: crate::Task,
    /// Only for `generate`, only here, never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_public_key: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunnerResponse {
    pub success: bool,
    pub ssh_port: u32,
    /// Empty for a virtual machine.
    pub container_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_ip: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssignedNode {
    pub hostname: String,
    pub url: Option<String>,
}

/// Answer of every act on a VPS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    pub message: String,
    pub task_id: String,
}

/// One thing that happened to a VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows; unique in the cluster.
    pub id: i64,
    pub task_id: String,
    pub at: String,
    /// What was asked (`create`, `stop`, `kill`, `restart`, `restore`, `pause`, `resume`, `update`,
    /// `delete`, `snapshot`, ...) or seen (`running`, `paused`, `stopped`, `failed`, `oom`, `lost`,
    /// `found`, `deleted`).
    pub kind: String,
    /// Who asked, as far as known, or `node NAME`, or `host`.
    pub actor: String,
    /// For people; may be empty.
    pub detail: String,
}
