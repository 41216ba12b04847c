//! Chooses a node's GPUs for an instance.
//!
//! Containers and virtual machines share one list and one set of allocations, so that no card is
//! ever allocated twice. They differ in what excludes a card, and in that a virtual machine takes
//! whole IOMMU groups: the other cards of a group are allocated with it.

use super::{Demand, GpuCapacity, GpuDemand, NodeCapacity, Shortage};
use crate::spec::{BackendKind, GpuRef};

/// Explains why the node cannot give GPUs to containers, if they are requested.
pub(super) fn lacks_runtime<'a>(demand: &Demand, node: &'a NodeCapacity) -> Option<&'a str> {
    let asked = demand.gpus.count() > 0 && demand.backend == BackendKind::Docker;
    let has_any = node.gpus.iter().any(|room| room.for_containers);
    node.no_gpu_runtime.as_deref().filter(|_| asked && has_any)
}

pub(super) fn choose(demand: &Demand, node: &NodeCapacity) -> Result<Vec<GpuRef>, Shortage> {
    let name = &node.name;
    if let Some(reason) = lacks_runtime(demand, node) {
        return Err(Shortage::absolute(format!("node '{name}' {reason}")));
    }
    let desk = Desk { node, backend: demand.backend };
    match &demand.gpus {
        GpuDemand::None => Ok(Vec::new()),
        GpuDemand::Indices(indices) => {
            let mut given = Vec::new();
            for index in indices {
                desk.give(desk.numbered(*index)?, &mut given)?;
            }
            // A container gets each; a virtual machine may already have one through another's
            // group.
            for room in given.clone() {
                desk.take_along(room, &mut given)?;
            }
            Ok(refs(&given))
        }
        GpuDemand::Same(gpus) => {
            let mut given = Vec::new();
            for gpu in gpus {
                desk.give(desk.known(gpu)?, &mut given)?;
            }
            let mut more = given.clone();
            for room in &given {
                desk.take_along(room, &mut more)?;
            }
            match more.get(given.len()) {
                None => Ok(refs(&given)),
                Some(other) => Err(Shortage::absolute(format!(
                    "GPU {} of node '{name}' shares an IOMMU group with what this VPS has, and is \
                     not its: create it anew, or plug the card elsewhere",
                    other.gpu.index
                ))),
            }
        }
        GpuDemand::Count(count) => desk.so_many(*count as usize, demand.numa),
    }
}

fn refs(given: &[&GpuCapacity]) -> Vec<GpuRef> {
    given.iter().map(|room| room.gpu.clone()).collect()
}

/// A node's GPUs, for one kind of instance.
struct Desk<'a> {
    node: &'a NodeCapacity,
    backend: BackendKind,
}

impl<'a> Desk<'a> {
    /// Returns the GPUs that this kind of instance can ever have.
    fn mine(&self) -> impl Iterator<Item = &'a GpuCapacity> {
        let any = self.backend == BackendKind::Qemu;
        self.node.gpus.iter().filter(move |room| any || room.for_containers)
    }

    fn numbered(&self, index: u32) -> Result<&'a GpuCapacity, Shortage> {
        self.node.gpus.iter().find(|room| room.gpu.index == index).ok_or_else(|| {
            let (name, has) = (&self.node.name, self.mine().count());
            Shortage::absolute(format!("node '{name}' has no GPU {index} (it has {has})"))
        })
    }

    fn known(&self, gpu: &GpuRef) -> Result<&'a GpuCapacity, Shortage> {
        let uuid = &gpu.uuid;
        self.node.gpus.iter().find(|room| room.gpu.uuid == *uuid).ok_or_else(|| {
            let name = &self.node.name;
            Shortage::absolute(format!("node '{name}' no longer has GPU {uuid}"))
        })
    }

    fn give(
        &self,
        room: &'a GpuCapacity,
        given: &mut Vec<&'a GpuCapacity>,
    ) -> Result<(), Shortage> {
        if let Some(reason) = self.refusal(room) {
            return Err(Shortage::absolute(reason));
        }
        if !given.iter().any(|other| other.gpu.uuid == room.gpu.uuid) {
            given.push(room);
        }
        Ok(())
    }

    /// Takes the rest of a GPU's group with it.
    fn take_along(
        &self,
        room: &'a GpuCapacity,
        given: &mut Vec<&'a GpuCapacity>,
    ) -> Result<(), Shortage> {
        for peer in self.peers(room) {
            self.give(peer, given).map_err(|shortage| {
                let index = room.gpu.index;
                Shortage::absolute(format!(
                    "GPU {index} is given only with the others of its IOMMU group, and {}",
                    shortage.reason
                ))
            })?;
        }
        Ok(())
    }

    fn peers(&self, room: &'a GpuCapacity) -> impl Iterator<Item = &'a GpuCapacity> {
        let along = self.backend == BackendKind::Qemu;
        self.node.gpus.iter().filter(move |other| along && room.peers.contains(&other.gpu.uuid))
    }

    fn refusal(&self, room: &GpuCapacity) -> Option<String> {
        let place = format!("GPU {} of node '{}'", room.gpu.index, self.node.name);
        if let Some(who) = &room.taken_by {
            return Some(format!("{place} is taken by {who}"));
        }
        match self.backend {
            BackendKind::Docker if !room.for_containers => {
                Some(format!("{place} is for virtual machines only (--backend qemu)"))
            }
            BackendKind::Docker => room.no_container.as_ref().map(|why| format!("{place} {why}")),
            BackendKind::Qemu => room
                .no_machine
                .as_ref()
                .map(|why| format!("{place} cannot be given to a virtual machine: {why}")),
        }
    }

    /// Takes whole groups of free cards until the count is reached, in greedy order.
    fn so_many(&self, wanted: usize, near: Option<u32>) -> Result<Vec<GpuRef>, Shortage> {
        let mut total = 0;
        let mut why_not = None;
        let mut units: Vec<Vec<&GpuCapacity>> = Vec::new();
        for room in self.mine() {
            total += 1;
            if units.iter().flatten().any(|other| other.gpu.uuid == room.gpu.uuid) {
                continue;
            }
            let mut unit = Vec::new();
            let given = self.give(room, &mut unit).and_then(|()| self.take_along(room, &mut unit));
            match given {
                Ok(()) => units.push(unit),
                Err(_) if room.taken_by.is_some() => {}
                Err(shortage) => why_not = why_not.or(Some(shortage.reason)),
            }
        }
        let idle: usize = units.iter().map(Vec::len).sum();
        if idle < wanted {
            let name = &self.node.name;
            let because = why_not.map(|why| format!(" ({why})")).unwrap_or_default();
            return Err(Shortage {
                reason: format!(
                    "node '{name}' has {idle} of {total} GPUs free, {wanted} requested{because}"
                ),
                share: idle as f64 / wanted as f64,
                would_fit: (idle > 0).then(|| format!("--gpus {idle}")),
            });
        }
        // Cards attached to the NUMA node of its processors are faster.
        units.sort_by_key(|unit| near.is_some() && unit.iter().any(|room| room.numa != near));
        let mut given: Vec<&GpuCapacity> = Vec::new();
        while given.len() < wanted {
            let missing = wanted - given.len();
            let fits = units.iter().position(|unit| unit.len() <= missing);
            let smallest = || (0..units.len()).min_by_key(|at| units[*at].len());
            let Some(at) = fits.or_else(smallest) else { break };
            given.extend(units.remove(at));
        }
        Ok(refs(&given))
    }
}
