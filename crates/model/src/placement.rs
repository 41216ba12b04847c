//! Chooses a new instance's node and GPUs. Pure: the store passes the nodes as they are in the
//! transaction that allocates.

use crate::id::NodeId;
use crate::memory::Memory;
use crate::name::NodeName;
use crate::spec::{BackendKind, GpuRef, NumaPin};

mod gpus;

/// The resources an instance takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// 0 allocates no core: no limit, shared with others.
    pub cores: u32,
    pub memory_bytes: u64,
    pub gpus: GpuDemand,
    /// The NUMA node it must run on.
    pub numa: Option<u32>,
    /// Its backend: each is given GPUs in its own way.
    pub backend: BackendKind,
}

/// The requested GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuDemand {
    #[default]
    None,
    /// GPU numbers, as people write them.
    Indices(Vec<u32>),
    /// A number of free GPUs.
    Count(u32),
    /// The cards it had before.
    Same(Vec<GpuRef>),
}

impl GpuDemand {
    fn count(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Indices(indices) => indices.len(),
            Self::Count(count) => *count as usize,
            Self::Same(gpus) => gpus.len(),
        }
    }
}

/// A node's state for placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    pub id: NodeId,
    pub name: NodeName,
    /// `None`: can take instances. Otherwise the reason, as a sentence part.
    pub unavailable: Option<String>,
    pub cores: u32,
    pub cores_taken: u32,
    pub memory_bytes: u64,
    pub memory_taken: u64,
    pub gpus: Vec<GpuCapacity>,
    /// `None`: can give GPUs to containers. Otherwise the reason, as a sentence part.
    pub no_gpu_runtime: Option<String>,
    pub numa: Vec<NumaRoom>,
}

/// A GPU, and the name of the instance that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCapacity {
    pub gpu: GpuRef,
    /// The NUMA node it is attached to.
    pub numa: Option<u32>,
    pub taken_by: Option<String>,
    /// Whether containers can ever have it.
    pub for_containers: bool,
    /// The reason why containers cannot have it now, as a sentence part.
    pub no_container: Option<String>,
    /// The reason why virtual machines cannot have it, as a sentence.
    pub no_machine: Option<String>,
    /// Identities of those that a virtual machine must take with it.
    pub peers: Vec<String>,
}

/// A NUMA node, with the allocations of instances pinned to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaRoom {
    pub pin: NumaPin,
    pub memory_bytes: u64,
    pub cores_taken: u32,
    pub memory_taken: u64,
}

/// The chosen node and resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub node: NodeId,
    pub gpus: Vec<GpuRef>,
    pub numa: Option<NumaPin>,
}

/// The reason why no node was found.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("there is no node named '{name}'")]
    UnknownNode { name: String, known: Vec<String> },
    #[error("no node has joined this cluster yet")]
    NoNodes,
    #[error("node '{node}' {reason}")]
    NodeUnavailable { node: String, reason: String },
    /// `nearest` names a smaller demand that would fit, if there is one.
    #[error("{}", .reasons.join("; "))]
    NoRoom { reasons: Vec<String>, nearest: Option<String> },
    /// No node can take instances at all, whatever the demand.
    #[error("{}", .reasons.join("; "))]
    NoneAvailable { reasons: Vec<String> },
    /// The node cannot give GPUs to containers.
    #[error("node '{node}' {reason}")]
    NoGpuRuntime { node: String, reason: String },
}

/// Chooses the requested node if it has capacity, otherwise the one that would be fullest
/// afterwards (best fit), so that large demands find capacity later. Nodes with GPUs are avoided
/// for demands without GPUs while others fit.
pub fn place(
    demand: &Demand,
    wanted: Option<&NodeName>,
    nodes: &[NodeCapacity],
) -> Result<Placed, Refusal> {
    if let Some(name) = wanted {
        let Some(node) = nodes.iter().find(|node| node.name == *name) else {
            let known = nodes.iter().map(|node| node.name.to_string()).collect();
            return Err(Refusal::UnknownNode { name: name.to_string(), known });
        };
        if let Some(reason) = &node.unavailable {
            let reason = reason.clone();
            return Err(Refusal::NodeUnavailable { node: name.to_string(), reason });
        }
        if let Some(reason) = gpus::lacks_runtime(demand, node) {
            let reason = reason.to_owned();
            return Err(Refusal::NoGpuRuntime { node: name.to_string(), reason });
        }
        return fit(demand, node).map_err(|shortage| Refusal::NoRoom {
            nearest: shortage.would_fit.map(|text| format!("{text} would fit there")),
            reasons: vec![shortage.reason],
        });
    }
    if nodes.is_empty() {
        return Err(Refusal::NoNodes);
    }
    let mut reasons = Vec::new();
    let mut best: Option<(Rank<'_>, Placed)> = None;
    let mut nearest: Option<(f64, String)> = None;
    for node in nodes {
        if let Some(reason) = &node.unavailable {
            reasons.push(format!("node '{}' {reason}", node.name));
            continue;
        }
        match fit(demand, node) {
            Ok(placed) => {
                let rank = (free_gpus(node), free_cores(node), free_memory(node), &node.name);
                if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                    best = Some((rank, placed));
                }
            }
            Err(shortage) => {
                reasons.push(shortage.reason);
                if let Some(text) = shortage.would_fit
                    && nearest.as_ref().is_none_or(|(share, _)| shortage.share > *share)
                {
                    nearest =
                        Some((shortage.share, format!("{text} would fit on '{}'", node.name)));
                }
            }
        }
    }
    match best {
        Some((_, placed)) => Ok(placed),
        None if nodes.iter().all(|node| node.unavailable.is_some()) => {
            Err(Refusal::NoneAvailable { reasons })
        }
        None => Err(Refusal::NoRoom { reasons, nearest: nearest.map(|(_, text)| text) }),
    }
}

/// Ranks a node by its remaining capacity: the least wins.
type Rank<'a> = (usize, u32, u64, &'a NodeName);

fn free_cores(node: &NodeCapacity) -> u32 {
    node.cores.saturating_sub(node.cores_taken)
}

fn free_memory(node: &NodeCapacity) -> u64 {
    node.memory_bytes.saturating_sub(node.memory_taken)
}

fn free_gpus(node: &NodeCapacity) -> usize {
    let usable = |room: &&GpuCapacity| room.for_containers || room.no_machine.is_none();
    node.gpus.iter().filter(usable).filter(|room| room.taken_by.is_none()).count()
}

/// The reason why a node does not fit.
struct Shortage {
    reason: String,
    /// The available part of the missing resource, 0 to 1.
    share: f64,
    would_fit: Option<String>,
}

impl Shortage {
    fn absolute(reason: String) -> Self {
        Self { reason, share: 0.0, would_fit: None }
    }
}

fn fit(demand: &Demand, node: &NodeCapacity) -> Result<Placed, Shortage> {
    let whole = format!("node '{}'", node.name);
    cores(demand.cores, node.cores, free_cores(node), &whole)?;
    memory(demand.memory_bytes, node.memory_bytes, free_memory(node), &whole)?;
    let numa = match demand.numa {
        None => None,
        Some(wanted) => Some(numa(demand, node, wanted)?),
    };
    let gpus = gpus::choose(demand, node)?;
    Ok(Placed { node: node.id.clone(), gpus, numa })
}

fn cores(wanted: u32, total: u32, free: u32, place: &str) -> Result<(), Shortage> {
    if wanted <= free {
        return Ok(());
    }
    let reason = if wanted > total {
        format!("{wanted} cores are more than {place} has ({total})")
    } else {
        format!("{place} has {free} of {total} cores free, {wanted} requested")
    };
    let would_fit = (free > 0).then(|| format!("-c {free}"));
    Err(Shortage { reason, share: f64::from(free) / f64::from(wanted), would_fit })
}

fn memory(wanted: u64, total: u64, free: u64, place: &str) -> Result<(), Shortage> {
    if wanted <= free {
        return Ok(());
    }
    let [wanted_text, total_text, free_text] = [wanted, total, free].map(Memory::from_bytes);
    let reason = if wanted > total {
        format!("{wanted_text} of memory is more than {place} has ({total_text})")
    } else {
        format!("{place} has {free_text} of memory free, {wanted_text} requested")
    };
    // In whole units, because people type it.
    let whole = Memory::from_bytes(free >> 20 << 20);
    let would_fit = (free >= 1 << 26).then(|| format!("-m {whole}"));
    Err(Shortage { reason, share: free as f64 / wanted as f64, would_fit })
}

fn numa(demand: &Demand, node: &NodeCapacity, wanted: u32) -> Result<NumaPin, Shortage> {
    let Some(room) = node.numa.iter().find(|room| room.pin.node == wanted) else {
        let known: Vec<_> = node.numa.iter().map(|room| room.pin.node.to_string()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let name = &node.name;
        return Err(Shortage::absolute(format!(
            "node '{name}' has no NUMA node {wanted} (it has {known})"
        )));
    };
    let place = format!("NUMA node {wanted} of node '{}'", node.name);
    let total = u32::try_from(room.pin.cpus.len()).unwrap_or(u32::MAX);
    cores(demand.cores, total, total.saturating_sub(room.cores_taken), &place)?;
    let free = room.memory_bytes.saturating_sub(room.memory_taken);
    memory(demand.memory_bytes, room.memory_bytes, free, &place)?;
    Ok(room.pin.clone())
}

#[cfg(test)]
mod tests;
