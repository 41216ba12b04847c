//! Which node gets a new instance, and which of its GPUs. Pure: the store gives it the nodes as
//! they are in the very transaction that will take the resources.

use crate::id::NodeId;
use crate::memory::Memory;
use crate::name::NodeName;
use crate::spec::{BackendKind, GpuRef, NumaPin};

mod gpus;

/// What the instance takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// 0 takes no core from the account: no limit, shared with everybody.
    pub cores: u32,
    pub memory_bytes: u64,
    pub gpus: GpuDemand,
    /// The NUMA node it must run on.
    pub numa: Option<u32>,
    /// What will run it: GPUs are handed over in another way by each.
    pub backend: BackendKind,
}

/// Which GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuDemand {
    #[default]
    None,
    /// These numbers, as people write them.
    Indices(Vec<u32>),
    /// So many, whichever are free.
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

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCapacity {
    pub id: NodeId,
    pub name: NodeName,
    /// `None`: can take work. Otherwise why it cannot, as a sentence part.
    pub unavailable: Option<String>,
    pub cores: u32,
    pub cores_taken: u32,
    pub memory_bytes: u64,
    pub memory_taken: u64,
    pub gpus: Vec<GpuCapacity>,
    /// `None`: containers can have GPUs here. Otherwise why not, as a sentence part.
    pub no_gpu_runtime: Option<String>,
    pub numa: Vec<NumaRoom>,
}

/// One GPU, and the name of who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCapacity {
    pub gpu: GpuRef,
    /// The NUMA node it is plugged into.
    pub numa: Option<u32>,
    pub taken_by: Option<String>,
    /// Whether it is one of those that containers are given.
    pub for_containers: bool,
    /// Why no container can have it now, as a sentence part.
    pub no_container: Option<String>,
    /// Why no machine can have it, as a sentence.
    pub no_machine: Option<String>,
    /// Identities of those that a machine must take along.
    pub peers: Vec<String>,
}

/// One NUMA node, with what is promised to instances that are pinned to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaRoom {
    pub pin: NumaPin,
    pub memory_bytes: u64,
    pub cores_taken: u32,
    pub memory_taken: u64,
}

/// Where it goes and what it gets there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub node: NodeId,
    pub gpus: Vec<GpuRef>,
    pub numa: Option<NumaPin>,
}

/// Why no node was found.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("there is no node named '{name}'")]
    UnknownNode { name: String, known: Vec<String> },
    #[error("no node has joined this cluster yet")]
    NoNodes,
    #[error("node '{node}' {reason}")]
    NodeUnavailable { node: String, reason: String },
    /// `nearest` says what would fit, where less of something would.
    #[error("{}", .reasons.join("; "))]
    NoRoom { reasons: Vec<String>, nearest: Option<String> },
    /// No node can take work at all, whatever is asked.
    #[error("{}", .reasons.join("; "))]
    NoneAvailable { reasons: Vec<String> },
    /// The node cannot give GPUs to containers at all.
    #[error("node '{node}' {reason}")]
    NoGpuRuntime { node: String, reason: String },
}

/// Picks the node: the wanted one if there is room, otherwise the one that would be fullest
/// afterwards (best fit), so that large requests find room later. Nodes with GPUs are left to
/// those who ask for GPUs as long as others will do.
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

/// What is left of a node: the least wins.
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

/// Why a node does not fit.
struct Shortage {
    reason: String,
    /// How much of what is missing the node has, 0 to 1.
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
        format!("{place} has {free} of {total} cores free, {wanted} are needed")
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
        format!("{place} has {free_text} of memory free, {wanted_text} is needed")
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
