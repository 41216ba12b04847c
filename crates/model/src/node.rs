//! A runner's report about its computer.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::image::{ImageReference, Registry, RepositoryPattern};
use crate::mount::MountWish;
use crate::spec::{ImageSource, InstanceSpec};

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
    /// Missing confinement on this node, as a sentence.
    #[serde(default)]
    pub docker_warning: Option<String>,
    /// Whether VPSes may be privileged here.
    #[serde(default)]
    pub allows_privileged: bool,
    /// Paths that VPSes may mount, with everything below them.
    #[serde(default)]
    pub allowed_mounts: Vec<String>,
    /// Registries whose images VPSes may use here; `None`: not reported.
    #[serde(default)]
    pub allowed_registries: Option<Vec<Registry>>,
    /// Repositories whose images are used as present on the node and never pulled.
    #[serde(default)]
    pub local_images: Vec<RepositoryPattern>,
    /// Whether the Docker engine can give NVIDIA GPUs to containers.
    #[serde(default)]
    pub gpu_runtime: GpuRuntime,
    /// Whether `/dev/kvm` can be opened. Whether a guest runs under it is in `vm`.
    #[serde(default)]
    pub kvm_device: bool,
    #[serde(default)]
    pub vm: VmState,
    #[serde(default)]
    pub kernel: String,
    #[serde(default)]
    pub os: String,
}

impl Inventory {
    /// Returns the inventory of a node of which only this is known.
    pub fn of(cores: u32, memory_bytes: u64, docker: DockerState) -> Self {
        Self {
            cores,
            memory_bytes,
            numa: Vec::new(),
            gpus: Vec::new(),
            docker,
            docker_warning: None,
            allows_privileged: false,
            allowed_mounts: Vec::new(),
            allowed_registries: None,
            local_images: Vec::new(),
            gpu_runtime: GpuRuntime::Missing,
            kvm_device: false,
            vm: VmState::default(),
            kernel: String::new(),
            os: String::new(),
        }
    }

    /// Returns what the specification requests and the node's owner has not allowed, as a sentence
    /// part.
    pub fn forbids(&self, spec: &InstanceSpec) -> Option<String> {
        if spec.privileged && !self.allows_privileged {
            return Some("lets no VPS be privileged".to_owned());
        }
        let allowed = |mount: &&MountWish| {
            self.allowed_mounts.iter().any(|place| Path::new(mount.source()).starts_with(place))
        };
        if let Some(denied) = spec.mounts.iter().find(|mount| !allowed(mount)) {
            return Some(format!("lets no VPS mount {}", denied.source()));
        }
        self.forbids_image(spec)
    }

    /// A copy's disk is already on the node, whatever its first image was.
    fn forbids_image(&self, spec: &InstanceSpec) -> Option<String> {
        let ImageSource::Registry { reference } = &spec.image else { return None };
        let registries = self.allowed_registries.as_ref().filter(|_| spec.snapshot.is_none())?;
        let reference = match ImageReference::parse(reference) {
            Ok(reference) => reference,
            Err(error) => return Some(format!("cannot use the image: {error}")),
        };
        let registry = reference.registry();
        let is_local = self.local_images.iter().any(|pattern| pattern.contains(&reference));
        (!is_local && !registries.contains(registry))
            .then(|| format!("allows no images of the registry {registry}"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    pub id: u32,
    pub cpus: Vec<u32>,
    pub memory_bytes: u64,
}

/// A GPU. The UUID is its identity; the index is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub index: u32,
    /// NVIDIA's, reported by its driver; [`Gpu::identity_at`] of a card that driver never had.
    pub uuid: String,
    pub name: String,
    pub pci_address: String,
    pub memory_bytes: u64,
    /// Its NUMA node, on a computer with several.
    #[serde(default)]
    pub numa: Option<u32>,
    /// `None`: available to containers. Otherwise the reason, as a sentence part.
    #[serde(default)]
    pub no_container: Option<String>,
    #[serde(default)]
    pub vfio: GpuVfio,
}

impl Gpu {
    /// Returns the identity of a card known only by its PCI address.
    pub fn identity_at(address: &str) -> String {
        format!("{BY_PLACE}{address}")
    }

    /// Checks whether containers can ever have it: other cards are not NVIDIA's, or were never seen
    /// with NVIDIA's driver.
    pub fn is_for_containers(&self) -> bool {
        !self.uuid.starts_with(BY_PLACE)
    }
}

const BY_PLACE: &str = "PCI-";

/// The facts about giving a GPU to a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuVfio {
    /// Its IOMMU group, which is given as a whole.
    pub group: Option<u32>,
    /// Identities of the group's other GPUs.
    pub peers: Vec<String>,
    /// The reason why it cannot be given, as a sentence.
    pub refusal: Option<String>,
    /// Four hexadecimal digits each.
    #[serde(default)]
    pub vendor_id: String,
    #[serde(default)]
    pub device_id: String,
    /// The PCI address of the card's audio function.
    #[serde(default)]
    pub audio: Option<String>,
    /// Whether it is bound to vfio-pci now.
    #[serde(default)]
    pub bound: bool,
}

impl Default for GpuVfio {
    fn default() -> Self {
        Self {
            group: None,
            peers: Vec::new(),
            refusal: Some("this runner has not looked at its IOMMU".to_owned()),
            vendor_id: String::new(),
            device_id: String::new(),
            audio: None,
            bound: false,
        }
    }
}

/// Whether the Docker backend works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DockerState {
    Ready { version: String },
    Unavailable { reason: String },
}

/// Whether the QEMU backend works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VmState {
    Ready {
        /// QEMU's version.
        version: String,
        accel: VmAccel,
        /// The reason why virtual machines are slower than possible.
        #[serde(default)]
        warning: Option<String>,
    },
    Unavailable {
        reason: String,
    },
}

impl Default for VmState {
    fn default() -> Self {
        Self::Unavailable { reason: "this runner has not looked for QEMU".to_owned() }
    }
}

/// How a virtual machine's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmAccel {
    /// By the processor, through the kernel's KVM; a guest has been seen to run under it.
    Kvm,
    /// By QEMU's translation: correct, and some ten times slower.
    Tcg,
}

impl VmAccel {
    pub fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// NVIDIA's container toolkit on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuRuntime {
    Ready,
    #[default]
    Missing,
}

/// Current metrics, sent with every heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// 0 to 100, over all cores.
    pub cpu_percent: f32,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub load_1m: f32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstanceId;
    use crate::spec::SnapshotRef;

    fn spec(image: &str) -> InstanceSpec {
        InstanceSpec::new(ImageSource::registry(image).unwrap())
    }

    #[test]
    fn node_refuses_images_of_registries_it_does_not_list() {
        let mut node = Inventory::of(1, 1, DockerState::Ready { version: String::new() });
        assert_eq!(node.forbids(&spec("127.0.0.1:5000/x")), None, "an older runner says nothing");
        node.allowed_registries = Some(Registry::usual());
        node.local_images = vec!["lab/*".parse().unwrap(), "reg.lab:5000/x".parse().unwrap()];
        for good in ["debian:12", "ghcr.io/a/b", "lab/tool", "reg.lab:5000/x:1"] {
            assert_eq!(node.forbids(&spec(good)), None, "{good}");
        }
        for bad in ["127.0.0.1:5000/x", "localhost/x", "10.0.0.1/x", "ghcr.io:444/x", "reg.lab/x"] {
            let refused = node.forbids(&spec(bad)).unwrap();
            assert!(refused.contains("allows no images of the registry"), "{bad}: {refused}");
        }
        let mut copy = spec("reg.lab/x");
        copy.snapshot = Some(SnapshotRef { task_id: InstanceId::from_u64(7), tag: 1 });
        assert_eq!(node.forbids(&copy), None);
        node.allowed_registries = Some(Vec::new());
        assert!(node.forbids(&spec("debian")).is_some() && node.forbids(&spec("lab/a")).is_none());
    }
}
