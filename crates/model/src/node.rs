//! What a runner tells of its machine.

use serde::{Deserialize, Serialize};

/// Facts that change rarely; sent at hello and when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub cores: u32,
    pub memory_bytes: u64,
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    pub docker: DockerState,
    /// Whether the Docker engine can hand NVIDIA GPUs to containers.
    #[serde(default)]
    pub gpu_runtime: GpuRuntime,
    /// `/dev/kvm` can be opened. Whether a guest runs under it is the QEMU backend's to find out.
    #[serde(default)]
    pub kvm_device: bool,
    #[serde(default)]
    pub kernel: String,
    #[serde(default)]
    pub os: String,
}

impl Inventory {
    /// A machine of which no more is known.
    pub fn of(cores: u32, memory_bytes: u64, docker: DockerState) -> Self {
        Self {
            cores,
            memory_bytes,
            numa: Vec::new(),
            gpus: Vec::new(),
            docker,
            gpu_runtime: GpuRuntime::Missing,
            kvm_device: false,
            kernel: String::new(),
            os: String::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    pub id: u32,
    pub cpus: Vec<u32>,
    pub memory_bytes: u64,
}

/// A GPU. The UUID is its identity, the index only how people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    pub pci_address: String,
    pub memory_bytes: u64,
    /// The NUMA node it is plugged into, where the machine has several.
    #[serde(default)]
    pub numa: Option<u32>,
}

/// Whether the Docker backend can work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DockerState {
    Ready { version: String },
    Unavailable { reason: String },
}

/// NVIDIA's container toolkit on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuRuntime {
    Ready,
    #[default]
    Missing,
}

/// Figures of the moment, sent with every heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// 0 to 100, over all cores.
    pub cpu_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub load_1m: f32,
}
