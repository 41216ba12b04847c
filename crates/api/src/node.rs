//! Nodes, and the tokens with which they join.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node as `GET /api/nodes` returns it. Fields up to `runner_version` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Node {
    pub hostname: String,
    /// Always present for existing clients; a runner has no URL because it dials the host.
    pub url: String,
    pub total_cores: u32,
    pub cores_in_use: u32,
    pub available_cores: u32,
    /// `online` or `offline`.
    pub status: String,
    pub last_heartbeat: Option<String>,
    /// NUMA layout: `{"0": {"cores": [0, 1], "memory_bytes": 1}, "numa_nodes": [{"id": 0,
    /// "cpu_count": 2, "memory_total_mb": 1}]}`; empty where the layout is unknown.
    pub numa_topology: BTreeMap<String, serde_json::Value>,
    pub gpu_info: Vec<GpuInfo>,
    pub cpu_percent: f32,
    pub memory_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub current_avg_temp: f32,
    pub current_max_temp: f32,
    /// Whether the node can run virtual machines.
    pub vm_capable: bool,
    /// GPUs behind an IOMMU, on nodes that can run virtual machines.
    pub vfio_gpus: Vec<VfioGpu>,
    pub runner_version: Option<String>,

    pub node_id: String,
    /// Memory allocated to VPSes, in bytes.
    pub memory_allocated_bytes: u64,
    /// Why the Docker engine cannot be used; null where it works.
    pub docker_error: Option<String>,
    pub docker_version: Option<String>,
    /// Why containers on this node are less isolated than they should be.
    pub docker_warning: Option<String>,
    /// Whether VPSes on this node may be privileged.
    pub allows_privileged: bool,
    /// Paths that VPSes may mount; each includes its subdirectories.
    pub allowed_mounts: Vec<String>,
    /// Registries whose images VPSes may use; null where the runner's version does not report them.
    pub allowed_registries: Option<Vec<String>>,
    /// Repositories whose local images are used as they are and never pulled; `*` matches
    /// everything below a prefix.
    pub local_images: Vec<String>,
    /// Why the node cannot run virtual machines; null where it can.
    pub vm_error: Option<String>,
    /// QEMU's version.
    pub vm_version: Option<String>,
    /// Accelerator of virtual machines: `kvm`, or `tcg` (emulation).
    pub vm_accel: Option<String>,
    /// Why virtual machines run slower on this node than they could.
    pub vm_warning: Option<String>,
    pub vps_count: u32,
    /// The node's clock minus the host's in milliseconds, measured when the node last connected.
    pub clock_skew_ms: i64,
    pub os: String,
    pub kernel: String,
    pub joined_at: Option<String>,
    /// Whether the node accepts no new VPSes.
    pub drained: bool,
    pub labels: BTreeMap<String, String>,
    /// Number of active VPSes without a CPU limit; they share all cores with every other VPS.
    pub vps_without_core_limit: u32,
    pub load_1m: f32,
    /// Whether the node's Docker engine can give GPUs to containers.
    pub gpu_runtime: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GpuInfo {
    pub gpu_id: u32,
    pub name: String,
    pub uuid: String,
    pub pci_address: String,
    pub memory_total_bytes: u64,
    /// Whether a VPS has allocated the GPU.
    pub taken: bool,
    /// Same as `pci_address`; this and the memory field have the original API's names.
    pub pci_bus_id: String,
    pub memory_total_mib: f64,
    /// Whether the GPU is bound to vfio-pci, for a virtual machine.
    pub vfio_bound: bool,
    /// Why containers cannot use the GPU now, as a clause without a capital letter.
    pub unusable: Option<String>,
}

/// A GPU as virtual machines use it. Fields up to `iommu_group_peers` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VfioGpu {
    pub gpu_id: u32,
    pub pci_address: String,
    pub name: String,
    /// Four hexadecimal digits, like `device_id`.
    pub vendor_id: String,
    pub device_id: String,
    pub iommu_group: Option<u32>,
    /// PCI address of the GPU's audio function, which is passed through together with it.
    pub audio_pci: Option<String>,
    /// PCI addresses of the GPUs in the same IOMMU group, which are passed through together.
    pub iommu_group_peers: Vec<String>,

    pub uuid: String,
    /// Whether a VPS has allocated the GPU.
    pub taken: bool,
    /// Why the GPU cannot be given to a virtual machine.
    pub refusal: Option<String>,
}

/// A node's usage at one moment of the last hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HealthSample {
    /// Milliseconds since 1970, by the host's clock.
    pub at_ms: i64,
    pub cpu_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub load_1m: f32,
}

/// Response of `GET /api/nodes/{name}/health`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeHealth {
    pub hostname: String,
    pub status: String,
    /// Samples of the last hour, oldest first; a gap means that the node did not report.
    pub samples: Vec<HealthSample>,
}

/// Body of `PATCH /api/nodes/{name}/labels`; null removes a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LabelChanges {
    pub labels: BTreeMap<String, Option<String>>,
}

/// Body of `POST /api/nodes/tokens`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenRequest {
    /// Seconds until the token expires; 3600 by default, at most 604800 (7 days).
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Address that the runner dials, `host:port`, where it differs from the one the host knows.
    #[serde(default)]
    pub address: Option<String>,
}

/// Response of `POST /api/nodes/tokens`, the only one that contains the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    pub token: String,
    pub expires_at: String,
    pub address: String,
}
