//! What a node's owner decides about its containers.

use std::path::PathBuf;

use kohakuriver_model::{Registry, RepositoryPattern};
use kohakuriver_vm::network::{BridgeName, Prefix, Subnet};

/// What an operator may choose for the containers of a node.
#[derive(Clone, Debug)]
pub struct ContainerSettings {
    /// What Docker and the kernel call their network.
    pub network: BridgeName,
    /// `None`: Docker chooses.
    pub subnet: Option<Subnet>,
    /// What they shall not reach besides what nobody's may.
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
    /// What the base environment is made from. `None`: it is built on the node, and no registry
    /// is asked.
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
