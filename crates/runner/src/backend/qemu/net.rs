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
            reason: format!("every address of {} belongs to a machine", self.config.subnet),
            hint:
                "delete machines that nobody needs, or start the runner with a larger --vm-subnet"
                    .to_owned(),
        })
    }

    /// Who a machine's QEMU is; root gives each its own.
    pub fn user(&self, address: Ipv4Addr) -> Option<u32> {
        self.bridge.as_ref().map(|_| FIRST_USER + (u32::from(address) & 0xffff))
    }

    /// What the machine's address is to people.
    pub fn shown(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
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

    /// A change of this network device may have cut a machine off.
    pub fn concerns(&self, device: &str) -> bool {
        self.bridge.as_ref().is_some_and(|bridge| bridge.concerns(device))
    }

    /// How a running machine is plugged in, where that is the runner's to look after.
    pub fn plugged(&self, id: InstanceId, machine: &Machine, qemu: Process) -> Option<Plugged> {
        let uid = self.user(machine.address)?;
        Some(Plugged { id, address: machine.address, uid, qemu })
    }

    /// Those that somebody cut off.
    pub async fn cut_off(&self, machines: &[Plugged]) -> Result<Vec<Plugged>, BackendError> {
        let Some(bridge) = &self.bridge else { return Ok(Vec::new()) };
        bridge.cut_off(machines).await.map_err(|error| refused(&error))
    }

    /// Plugs one of these in again.
    pub async fn mend(&self, machine: Plugged) -> Result<(), BackendError> {
        let Some(bridge) = &self.bridge else { return Ok(()) };
        bridge.mend(machine).await.map_err(|error| refused(&error))
    }

    /// Removes what belongs to no living machine, and mends what the others have. `false`: devices
    /// may be left.
    pub async fn sweep(&self, living: &[InstanceId]) -> bool {
        let Some(bridge) = &self.bridge else { return true };
        let swept = bridge.sweep(living).await;
        match &swept {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(?gone, "network devices of ended machines removed"),
            Err(error) => tracing::warn!(%error, "network devices cannot be looked through"),
        }
        if let Err(error) = bridge.repair().await {
            tracing::warn!(%error, "the machines' network is not whole");
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
        reason: format!("the machine gets no network: {reason}"),
        hint: "'kohakuriver qemu check' on the node shows what is missing".to_owned(),
    }
}
