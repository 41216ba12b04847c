//! The paths of the node's files, and their paths inside a container.
//!
//! ```text
//!  <data>/lock                              one runner at a time
//!  <data>/agent/kohakuriver                 -> /.kohakuriver/bin  (read-only)
//!  <data>/images/                           metadata of loaded environments; builds
//!  <data>/gpus.json                         GPUs as NVIDIA's driver reported them
//!  <data>/vfio/<id>.json                    earlier drivers of a VM's PCI devices
//!  <data>/instances/<id>/order.json         the ledger
//!  <data>/instances/<id>/etc/               -> /.kohakuriver/etc  (read-only; the runner writes)
//!  <data>/instances/<id>/run/               -> /.kohakuriver/run  (the container writes)
//!  <data>/instances/<id>/own/               -> /etc/{hosts,resolv.conf,hostname} (the container writes)
//!  <data>/vm/                               machines: disks, layers, snapshots (backend::qemu)
//!  <shared>/vm-images                       base images of machines
//!  <shared>/shared_data                     -> /shared
//!  <shared>/kohakuriver-containers          environment tarballs
//! ```

use std::path::{Path, PathBuf};

use kohakuriver_model::InstanceId;

pub const IN_BIN: &str = "/.kohakuriver/bin";
pub const IN_ETC: &str = "/.kohakuriver/etc";
pub const IN_RUN: &str = "/.kohakuriver/run";
pub const IN_SHARED: &str = "/shared";
pub const AGENT_NAME: &str = "kohakuriver";

/// The directories of one runner.
#[derive(Clone, Debug)]
pub struct Layout {
    data: PathBuf,
    shared: PathBuf,
}

impl Layout {
    pub fn new(data: impl Into<PathBuf>, shared: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), shared: shared.into() }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn agent_dir(&self) -> PathBuf {
        self.data.join("agent")
    }

    pub fn images_dir(&self) -> PathBuf {
        self.data.join("images")
    }

    pub fn instances_dir(&self) -> PathBuf {
        self.data.join("instances")
    }

    pub fn instance(&self, id: InstanceId) -> PathBuf {
        self.instances_dir().join(id.to_string())
    }

    pub fn etc(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("etc")
    }

    pub fn run(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("run")
    }

    /// Returns the directory of the container's `/etc/hosts` and the like.
    pub fn own(&self, id: InstanceId) -> PathBuf {
        self.instance(id).join("own")
    }

    pub fn shared_data(&self) -> PathBuf {
        self.shared.join("shared_data")
    }

    pub fn machines_dir(&self) -> PathBuf {
        self.data.join("vm")
    }

    pub fn vm_images(&self) -> PathBuf {
        self.shared.join("vm-images")
    }

    pub fn environments(&self) -> PathBuf {
        self.shared.join("kohakuriver-containers")
    }
}
