//! What a runner tells of its machine.

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
    /// What is not as contained here as it should be, as a sentence.
    #[serde(default)]
    pub docker_warning: Option<String>,
    /// VPSes may be privileged here.
    #[serde(default)]
    pub allows_privileged: bool,
    /// VPSes may have mounts of these paths, and of what is inside them.
    #[serde(default)]
    pub allowed_mounts: Vec<String>,
    /// Registries whose images VPSes may have here; `None`: the runner does not say.
    #[serde(default)]
    pub allowed_registries: Option<Vec<Registry>>,
    /// Repositories whose images are used as the node has them, and never pulled.
    #[serde(default)]
    pub local_images: Vec<RepositoryPattern>,
    /// Whether the Docker engine can hand NVIDIA GPUs to containers.
    #[serde(default)]
    pub gpu_runtime: GpuRuntime,
    /// `/dev/kvm` can be opened. Whether a guest runs under it is in `vm`.
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
    /// A machine of which no more is known.
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

    /// What its owner has not allowed of what an instance asks for, as a sentence part.
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

    /// A copy's disk is on the node already, whatever it was first made from.
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

/// A GPU. The UUID is its identity, the index only how people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub index: u32,
    /// NVIDIA's, which its driver tells; [`Gpu::identity_at`] of a card that driver never had.
    pub uuid: String,
    pub name: String,
    pub pci_address: String,
    pub memory_bytes: u64,
    /// The NUMA node it is plugged into, where the machine has several.
    #[serde(default)]
    pub numa: Option<u32>,
    /// `None`: a container can have it. Otherwise why not, as a sentence part.
    #[serde(default)]
    pub no_container: Option<String>,
    #[serde(default)]
    pub vfio: GpuVfio,
}

impl Gpu {
    /// The identity of a card that is known by its place only.
    pub fn identity_at(address: &str) -> String {
        format!("{BY_PLACE}{address}")
    }

    /// Whether it is one that containers can have at all: the others are not of NVIDIA's, or were
    /// never seen with NVIDIA's driver.
    pub fn is_for_containers(&self) -> bool {
        !self.uuid.starts_with(BY_PLACE)
    }
}

const BY_PLACE: &str = "PCI-";

/// What giving a GPU to a virtual machine means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuVfio {
    /// Its IOMMU group, which is given away whole.
    pub group: Option<u32>,
    /// Identities of the GPUs that go with it.
    pub peers: Vec<String>,
    /// Why it cannot be given, as a sentence.
    pub refusal: Option<String>,
    /// Four hexadecimal digits each.
    #[serde(default)]
    pub vendor_id: String,
    #[serde(default)]
    pub device_id: String,
    /// Where the card's sound is.
    #[serde(default)]
    pub audio: Option<String>,
    /// It is with vfio-pci now.
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

/// Whether the Docker backend can work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DockerState {
    Ready { version: String },
    Unavailable { reason: String },
}

/// Whether the QEMU backend can work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VmState {
    Ready {
        /// QEMU's.
        version: String,
        accel: VmAccel,
        /// Why machines are slower than they could be.
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

/// What runs a virtual machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmAccel {
    /// The processor, by the kernel's KVM; a guest was seen to run under it.
    Kvm,
    /// QEMU translates them: correct, and some ten times slower.
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

/// Figures of the moment, sent with every heartbeat.
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
