//! NUMA nodes from sysfs.

use std::fs;
use std::path::Path;

use kohakuriver_model::node::NumaNode;

use super::memory;

/// Nodes with processors, in order; none where the kernel does not say.
pub fn detect(root: &Path) -> Vec<NumaNode> {
    let mut nodes: Vec<NumaNode> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = cpu_list(&fs::read_to_string(entry.path().join("cpulist")).ok()?)?;
            let memory = fs::read_to_string(entry.path().join("meminfo")).unwrap_or_default();
            let memory_bytes = memory::field(&memory, "MemTotal:").unwrap_or(0);
            (!cpus.is_empty()).then_some(NumaNode { id, cpus, memory_bytes })
        })
        .collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// The kernel's list format: `0-3,8,10-11`.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // Far above any machine, so that nonsense cannot fill the memory.
        if last < first || last > 65_535 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_understood() {
        assert_eq!(cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(cpu_list("\n"), Some(vec![]));
        for bad in ["3-1", "a", "0-4294967295"] {
            assert_eq!(cpu_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn nodes_with_processors_are_listed_in_order() {
        let root = tempfile::tempdir().unwrap();
        for (id, cpus) in [(1, "4-7\n"), (0, "0-3\n"), (2, "\n")] {
            let node = root.path().join(format!("node{id}"));
            fs::create_dir(&node).unwrap();
            fs::write(node.join("cpulist"), cpus).unwrap();
            let meminfo = format!("Node {id} MemTotal:       1024 kB\nNode {id} MemFree: 1 kB\n");
            fs::write(node.join("meminfo"), meminfo).unwrap();
        }
        fs::write(root.path().join("online"), "0-2\n").unwrap();
        let nodes = detect(root.path());
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[1].cpus, [4, 5, 6, 7]);
        assert_eq!(nodes[1].memory_bytes, 1024 * 1024);
        assert!(detect(&root.path().join("none")).is_empty());
    }
}
