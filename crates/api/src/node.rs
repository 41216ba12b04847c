//! Nodes and the tokens that let them join.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node as `/api/nodes` lists it. Fields up to `runner_version` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Node {
    pub hostname: String,
    /// Kept for old clients; runners have no URL, they dial out.
    pub url: String,
    pub total_cores: u32,
    pub cores_in_use: u32,
    pub available_cores: u32,
    /// `online` or `offline`.
    pub status: String,
    pub last_heartbeat: Option<String>,
    /// `{"0": {"cores": [0, 1], "memory_bytes": 1}, "numa_nodes": [{"id": 0, "cpu_count": 2,
    /// "memory_total_mb": 1}]}`; empty where nothing is known.
    pub numa_topology: BTreeMap<String, serde_json::Value>,
    pub gpu_info: Vec<GpuInfo>,
    pub cpu_percent: f32,
    pub memory_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub current_avg_temp: f32,
    pub current_max_temp: f32,
    /// Whether virtual machines can run here.
    pub vm_capable: bool,
    /// Those behind an IOMMU, where virtual machines can run.
    pub vfio_gpus: Vec<VfioGpu>,
    pub runner_version: Option<String>,

    pub node_id: String,
    /// Memory promised to VPSes.
    pub memory_allocated_bytes: u64,
    /// None: the Docker engine works. Otherwise why not.
    pub docker_error: Option<String>,
    pub docker_version: Option<String>,
    /// What is not as contained here as it should be.
    pub docker_warning: Option<String>,
    /// VPSes may be privileged here.
    pub allows_privileged: bool,
    /// VPSes may have mounts of these paths, and of what is inside them.
    pub allowed_mounts: Vec<String>,
    /// Registries whose images VPSes may have here; null: its runner is older and does not say.
    pub allowed_registries: Option<Vec<String>>,
    /// Repositories whose images are used as the node has them, and never pulled; `*` stands for
    /// everything below.
    pub local_images: Vec<String>,
    /// None: virtual machines can run here. Otherwise why not.
    pub vm_error: Option<String>,
    /// QEMU's.
    pub vm_version: Option<String>,
    /// What runs a virtual machine's instructions: `kvm`, or `tcg` (emulated).
    pub vm_accel: Option<String>,
    /// Why virtual machines are slower here than they could be.
    pub vm_warning: Option<String>,
    pub vps_count: u32,
    /// The node's clock minus the host's, milliseconds, when it last said hello.
    pub clock_skew_ms: i64,
    pub os: String,
    pub kernel: String,
    pub joined_at: Option<String>,
    /// It takes no new work.
    pub drained: bool,
    pub labels: BTreeMap<String, String>,
    /// VPSes that are up without a limit of cores; they share all cores with everybody.
    pub vps_without_core_limit: u32,
    pub load_1m: f32,
    /// Whether its Docker engine can give GPUs to containers.
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
    /// A VPS holds it.
    pub taken: bool,
    /// `pci_address` and memory under the original's names.
    pub pci_bus_id: String,
    pub memory_total_mib: f64,
    /// It is with vfio-pci, for a virtual machine.
    pub vfio_bound: bool,
    /// Why no container can have it now, as the rest of a sentence.
    pub unusable: Option<String>,
}

/// A GPU as virtual machines see it. Fields up to `iommu_group_peers` are the original API's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct VfioGpu {
    pub gpu_id: u32,
    pub pci_address: String,
    pub name: String,
    /// Four hexadecimal digits, as are `device_id`'s.
    pub vendor_id: String,
    pub device_id: String,
    pub iommu_group: Option<u32>,
    /// Its sound, which goes with it.
    pub audio_pci: Option<String>,
    /// PCI addresses of the GPUs that go with it.
    pub iommu_group_peers: Vec<String>,

    pub uuid: String,
    /// A VPS holds it.
    pub taken: bool,
    /// Why it cannot be given to a virtual machine.
    pub refusal: Option<String>,
}

/// How a node was at one moment of the last hour.
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

/// Answer of `GET /api/nodes/{name}/health`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeHealth {
    pub hostname: String,
    pub status: String,
    /// The last hour as the host heard it, oldest first; a gap is a time of silence.
    pub samples: Vec<HealthSample>,
}

/// Body of `PATCH /api/nodes/{name}/labels`: null removes a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LabelChanges {
    pub labels: BTreeMap<String, Option<String>>,
}

/// Body of `POST /api/nodes/tokens`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenRequest {
    /// Seconds until it expires; 3600 unless given, at most 7 days.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Address the runner should dial, `host:port`, if not the one the host knows.
    #[serde(default)]
    pub address: Option<String>,
}

/// Answer of `POST /api/nodes/tokens`; the only time the token is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    pub token: String,
    pub expires_at: String,
    pub address: String,
}
