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
    #[serde(default = "docker")]
    pub vps_backend: String,
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    #[serde(default)]
    pub pids_limit: Option<u32>,
}

fn one() -> i64 {
    1
}

fn disabled() -> String {
    "disabled".to_owned()
}

fn docker() -> String {
    "docker".to_owned()
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
            vps_backend: docker(),
            env_vars: BTreeMap::new(),
            pids_limit: None,
        }
    }
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
    /// The VPS itself.
    pub task: crate::Task,
    /// Only for `generate`, only here, never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_public_key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssignedNode {
    pub hostname: String,
    pub url: Option<String>,
}

/// Answer of stop, restart and delete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    pub message: String,
    pub task_id: String,
}
