//! What giving GPUs to a machine means, and what stands against it. Pure.

use std::collections::BTreeSet;

use super::address::PciAddress;
use super::pci::{Function, Pci};

/// What is taken from the machine's drivers, and what of it QEMU gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The IOMMU groups: the kernel gives these out, and only whole.
    pub groups: BTreeSet<u32>,
    /// Handed to vfio-pci: everything in the groups but bridges.
    pub bind: BTreeSet<PciAddress>,
    /// Handed to the machine: every function of a GPU's own slot.
    pub pass: BTreeSet<PciAddress>,
}

/// Why a GPU cannot be given to a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no GPU at {0}: kohakuriver node status shows where this node's are")]
    Absent(PciAddress),
    #[error(
        "the IOMMU is off: switch on VT-d (Intel) or AMD-Vi in the firmware, add \
         intel_iommu=on or amd_iommu=on to the kernel's command line, and boot again"
    )]
    NoIommu,
    #[error("{0} is in no IOMMU group: the firmware's tables do not name it")]
    NoGroup(PciAddress),
    #[error(
        "{address} shows this machine's console: let the firmware start on another card, or free \
         it with echo 0 > /sys/class/vtconsole/{console}/bind"
    )]
    Console { address: PciAddress, console: String },
    #[error(
        "IOMMU group {group} holds {address}, which carries {what}: free it, or plug the \
         card into a slot with a group of its own"
    )]
    Carries { group: String, address: PciAddress, what: String },
    #[error(
        "IOMMU group {group} holds {address}, a part of the board that {driver} drives: \
         plug the card into a slot with a group of its own"
    )]
    Chipset { group: String, address: PciAddress, driver: String },
    #[error("{gpu} shares its IOMMU group with the GPU {peer}: both go to one machine or none")]
    Parted { gpu: PciAddress, peer: PciAddress },
}

/// Gives these GPUs to one machine.
pub fn plan(pci: &Pci, gpus: &BTreeSet<PciAddress>) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    for gpu in gpus {
        if !pci.gpus.contains(gpu) {
            return Err(Refusal::Absent(*gpu));
        }
        if !pci.has_iommu() {
            return Err(Refusal::NoIommu);
        }
        for function in pci.unit(*gpu).into_iter().filter_map(|mate| pci.functions.get(&mate)) {
            plan.groups.insert(allow(pci, function)?);
            let is_peer = pci.gpus.contains(&function.address);
            if is_peer && !gpus.contains(&function.address) {
                return Err(Refusal::Parted { gpu: *gpu, peer: function.address });
            }
            plan.bind.insert(function.address);
            if function.address.is_same_slot(*gpu) {
                plan.pass.insert(function.address);
            }
        }
    }
    Ok(plan)
}

/// Why a GPU can never be given as things are, its peers given along.
pub fn refusal(pci: &Pci, gpu: PciAddress) -> Option<Refusal> {
    let together = pci.peers(gpu).into_iter().chain([gpu]).collect();
    plan(pci, &together).err()
}

/// The function's group, if the machine itself can do without it.
fn allow(pci: &Pci, function: &Function) -> Result<u32, Refusal> {
    let address = function.address;
    let Some(group) = function.group else { return Err(Refusal::NoGroup(address)) };
    let name = group.to_string();
    let is_shown = function.is_display() && function.boot_vga && !function.is_with_vfio();
    if let Some(console) = pci.console.as_ref().filter(|_| is_shown) {
        return Err(Refusal::Console { address, console: console.clone() });
    }
    if let Some(what) = &function.carries {
        return Err(Refusal::Carries { group: name, address, what: what.clone() });
    }
    // Without a driver it is nobody's; the kernel lets it be.
    if let Some(driver) = function.driver.as_ref().filter(|_| function.is_chipset()) {
        return Err(Refusal::Chipset { group: name, address, driver: driver.clone() });
    }
    Ok(group)
}
