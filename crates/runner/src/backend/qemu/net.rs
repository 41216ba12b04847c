//! Machines' network: the bridge where the runner is root, QEMU's own network where it is not.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use kohakuriver_agent_protocol::GUEST_PORT;
use kohakuriver_model::InstanceId;
use kohakuriver_vm::launch::Process;
use kohakuriver_vm::network::user::{self, Outward};
use kohakuriver_vm::network::{
    Network, NetworkConfig, NetworkError, Nic, Owner, Plugged, nameservers,
};

use super::record::Machine;
use super::{QemuConfig, files};
use crate::backend::BackendError;

/// Above the users that distributions and containers give out.
const FIRST_USER: u32 = 1_900_000_000;

#[derive(Debug)]
pub struct Net {
    /// `None`: the runner may not make devices.
    bridge: Option<Network>,
    config: NetworkConfig,
    outward: Outward,
}

impl Net {
    pub fn new(config: &QemuConfig) -> Self {
        let settings = &config.settings;
        let network = NetworkConfig {
            bridge: settings.bridge.clone(),
            subnet: settings.subnet,
            nameservers: nameservers(),
            owner: Owner::of(config.layout.data()),
        };
        let root = nix::unistd::geteuid().is_root();
        let bridge = root.then(|| Network::new(network.clone()));
        Self { bridge, config: network, outward: settings.outward }
    }

    #[cfg(test)]
    pub fn without_bridge(&mut self) {
        self.bridge = None;
    }

    /// The lowest address that no machine of this node has. It also tells machines' users apart
    /// where QEMU's own network gives all guests the same one.
    pub fn free_address(&self, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, BackendError> {
        self.config.subnet.allocate(taken).ok_or_else(|| BackendError::NoMachine {
            reason: format!("every address of {} is in use by a VM", self.config.subnet),
            hint:
                "delete machines that nobody needs, or start the runner with a larger --vm-subnet"
                    .to_owned(),
        })
    }

    /// Returns the user of a VM's QEMU; root gives each its own.
    pub fn user(&self, address: Ipv4Addr) -> Option<u32> {
        self.bridge.as_ref().map(|_| FIRST_USER + (u32::from(address) & 0xffff))
    }

    /// Returns the VM's address if clients can use it.
    pub fn displayed(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.bridge.as_ref().map(|_| address)
    }

    pub async fn plug(&self, id: InstanceId, machine: &Machine) -> Result<Nic, BackendError> {
        match (&self.bridge, self.user(machine.address)) {
            (Some(bridge), Some(user)) => {
                bridge.attach(id, machine.address, user).await.map_err(|error| refused(&error))?;
                Ok(bridge.nic(id, machine.address, GUEST_PORT))
            }
            _ => {
                let port = user::free_port(machine.agent_port).map_err(files)?;
                Ok(user::nic(port, GUEST_PORT, self.outward))
            }
        }
    }

    /// Where a machine's agent is.
    pub fn agent(&self, machine: &Machine) -> Option<SocketAddr> {
        match (&self.bridge, machine.agent_port) {
            (Some(_), _) => Some((machine.address, GUEST_PORT).into()),
            (None, Some(port)) => Some((Ipv4Addr::LOCALHOST, port).into()),
            (None, None) => None,
        }
    }

    pub async fn unplug(&self, id: InstanceId) -> Result<(), BackendError> {
        match &self.bridge {
            Some(bridge) => bridge.detach(id).await.map_err(|error| refused(&error)),
            None => Ok(()),
        }
    }

    pub fn has_bridge(&self) -> bool {
        self.bridge.is_some()
    }

    /// Whether a change of this network device may have detached a VM.
    pub fn concerns(&self, device: &str) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.concerns(device))
    }

    /// How a running machine is plugged in, where that is the runner's to look after.
    pub fn plugged(&self, id: InstanceId, machine: &Machine, qemu: Process) -> Option<Plugged> {
        let uid = self.user(machine.address)?;
        Some(Plugged { id, address: machine.address, uid, qemu })
    }

    /// Returns the VMs that are detached from the network.
    pub async fn detached(&self, machines: &[Plugged]) -> Result<Vec<Plugged>, BackendError> {
        let Some(bridge) = &self.bridge else { return Ok(Vec::new()) };
        bridge.cut_off(machines).await.map_err(|error| refused(&error))
    }

    /// Attaches a detached VM again.
    pub async fn repair(&self, machine: Plugged) -> Result<(), BackendError> {
        let Some(bridge) = &self.bridge else { return Ok(()) };
        bridge.mend(machine).await.map_err(|error| refused(&error))
    }

    /// Removes devices of VMs that are gone, and repairs those of the others. Returns `false` if
    /// devices may be left.
    pub async fn sweep(&self, living: &[InstanceId]) -> bool {
        let Some(bridge) = &self.bridge else { return true };
        let swept = bridge.sweep(living).await;
        match &swept {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "network devices of ended machines removed"),
            Err(error) => tracing::warn!(%error, "cannot inspect network devices"),
        }
        if let Err(error) = bridge.repair().await {
            tracing::warn!(%error, "cannot repair the VMs' network");
        }
        swept.is_ok()
    }
}

fn refused(error: &NetworkError) -> BackendError {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    BackendError::NoMachine {
        reason: format!("cannot connect the VM to its network: {reason}"),
        hint: "'kohakuriver qemu check' on the node shows what is missing".to_owned(),
    }
}
