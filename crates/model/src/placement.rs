//! Which node gets a new instance. Pure: the store gives it the nodes as they are in the very
//! transaction that will take the resources.

use crate::id::NodeId;
use crate::memory::Memory;
use crate::name::NodeName;

/// What the instance takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// 0 takes no core from the account: no limit, shared with everybody.
    pub cores: u32,
    pub memory_bytes: u64,
}

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    pub id: NodeId,
    pub name: NodeName,
    /// `None`: can take work. Otherwise why it cannot, as a sentence part.
    pub unavailable: Option<String>,
    pub cores: u32,
    pub cores_taken: u32,
    pub memory_bytes: u64,
    pub memory_taken: u64,
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
    #[error("{}", .reasons.join("; "))]
    NoRoom { reasons: Vec<String> },
}

/// Picks the node: the wanted one if there is room, otherwise the one that would be fullest
/// afterwards (best fit), so that large requests find room later.
pub fn place<'a>(
    demand: Demand,
    wanted: Option<&NodeName>,
    nodes: &'a [NodeRoom],
) -> Result<&'a NodeRoom, Refusal> {
    if let Some(name) = wanted {
        let Some(node) = nodes.iter().find(|node| node.name == *name) else {
            let known = nodes.iter().map(|node| node.name.to_string()).collect();
            return Err(Refusal::UnknownNode { name: name.to_string(), known });
        };
        if let Some(reason) = &node.unavailable {
            return Err(Refusal::NodeUnavailable {
                node: name.to_string(),
                reason: reason.clone(),
            });
        }
        return match shortage(demand, node) {
            None => Ok(node),
            Some(reason) => Err(Refusal::NoRoom { reasons: vec![reason] }),
        };
    }
    if nodes.is_empty() {
        return Err(Refusal::NoNodes);
    }
    let fits = |node: &&NodeRoom| node.unavailable.is_none() && shortage(demand, node).is_none();
    nodes
        .iter()
        .filter(fits)
        .min_by_key(|node| (free_cores(node), free_memory(node), &node.name))
        .ok_or_else(|| {
            let reasons = nodes
                .iter()
                .map(|node| match &node.unavailable {
                    Some(reason) => format!("node '{}' {reason}", node.name),
                    None => shortage(demand, node).unwrap_or_default(),
                })
                .collect();
            Refusal::NoRoom { reasons }
        })
}

fn free_cores(node: &NodeRoom) -> u32 {
    node.cores.saturating_sub(node.cores_taken)
}

fn free_memory(node: &NodeRoom) -> u64 {
    node.memory_bytes.saturating_sub(node.memory_taken)
}

fn shortage(demand: Demand, node: &NodeRoom) -> Option<String> {
    let name = &node.name;
    if demand.cores > node.cores {
        return Some(format!(
            "{} cores are more than node '{name}' has ({})",
            demand.cores, node.cores
        ));
    }
    if demand.cores > free_cores(node) {
        let free = free_cores(node);
        return Some(format!(
            "node '{name}' has {free} of {} cores free, {} are needed",
            node.cores, demand.cores
        ));
    }
    let wanted = Memory::from_bytes(demand.memory_bytes);
    if demand.memory_bytes > node.memory_bytes {
        let total = Memory::from_bytes(node.memory_bytes);
        return Some(format!("{wanted} of memory is more than node '{name}' has ({total})"));
    }
    if demand.memory_bytes > free_memory(node) {
        let free = Memory::from_bytes(free_memory(node));
        return Some(format!("node '{name}' has {free} of memory free, {wanted} is needed"));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, cores: u32, taken: u32) -> NodeRoom {
        NodeRoom {
            id: NodeId::new(name),
            name: name.parse().unwrap(),
            unavailable: None,
            cores,
            cores_taken: taken,
            memory_bytes: 100,
            memory_taken: 0,
        }
    }

    #[test]
    fn the_fullest_node_that_fits_is_taken() {
        let nodes = [node("empty", 8, 0), node("busy", 8, 5), node("full", 8, 7)];
        let demand = Demand { cores: 2, memory_bytes: 0 };
        assert_eq!(place(demand, None, &nodes).unwrap().name.as_str(), "busy");
    }

    #[test]
    fn a_refusal_says_for_each_node_why_not() {
        let mut away = node("away", 8, 0);
        away.unavailable = Some("is offline".to_owned());
        let nodes = [away, node("small", 1, 0)];
        let refusal = place(Demand { cores: 2, memory_bytes: 0 }, None, &nodes).unwrap_err();
        let text = refusal.to_string();
        assert!(
            text.contains("'away' is offline") && text.contains("more than node 'small' has (1)"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn what_is_placed_always_fits(
            cores in 0u32..10, memory_bytes in 0u64..120,
            taken in proptest::collection::vec((0u32..9, 0u32..9), 0..6)
        ) {
            let nodes: Vec<_> = taken.iter().enumerate().map(|(i, (total, used))| node(&format!("n{i}"), *total, *used)).collect();
            let demand = Demand { cores, memory_bytes };
            if let Ok(chosen) = place(demand, None, &nodes) {
                prop_assert!(cores == 0 || chosen.cores_taken + cores <= chosen.cores);
                prop_assert!(chosen.memory_taken + memory_bytes <= chosen.memory_bytes);
            }
        }
    }
}
