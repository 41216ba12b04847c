//! The settings of a node's containers, chosen by its owner.

use std::path::PathBuf;

use kohakuriver_model::{Registry, RepositoryPattern};
use kohakuriver_vm::network::{BridgeName, Prefix, Subnet};

/// The operator's settings for the containers of a node.
#[derive(Clone, Debug)]
pub struct ContainerSettings {
    /// The name of their network in Docker and the kernel.
    pub network: BridgeName,
    /// `None`: Docker chooses.
    pub subnet: Option<Subnet>,
    /// Addresses denied to them in addition to those always denied.
    pub denied: Vec<Prefix>,
    /// Programs gain nothing from set-user-id files: no `sudo`, no `su`.
    pub no_new_privileges: bool,
    /// Operators may have privileged ones.
    pub allow_privileged: bool,
    /// Operators may mount these paths, and what is inside them.
    pub allow_mounts: Vec<PathBuf>,
    /// The registries that users may name images of.
    pub registries: Vec<Registry>,
    /// Repositories whose images are used as the node has them, and never pulled.
    pub local_images: Vec<RepositoryPattern>,
    /// The image of the base environment. `None`: it is built on the node without any registry.
    pub default_image: Option<String>,
}

impl Default for ContainerSettings {
    fn default() -> Self {
        Self {
            network: BridgeName::of_containers(),
            subnet: None,
            denied: Vec::new(),
            no_new_privileges: false,
            allow_privileged: false,
            allow_mounts: Vec::new(),
            registries: Registry::usual(),
            local_images: Vec::new(),
            default_image: None,
        }
    }
}
