use proptest::prelude::*;

use super::*;

fn node(name: &str, cores: u32, taken: u32) -> NodeCapacity {
    NodeCapacity {
        id: NodeId::new(name),
        name: name.parse().unwrap(),
        unavailable: None,
        cores,
        cores_taken: taken,
        memory_bytes: 100 << 30,
        memory_taken: 0,
        gpus: Vec::new(),
        no_gpu_runtime: None,
        numa: Vec::new(),
    }
}

fn with_gpus(mut node: NodeCapacity, taken: &[bool]) -> NodeCapacity {
    node.gpus = taken
        .iter()
        .zip(0..)
        .map(|(taken, index)| GpuCapacity {
            gpu: GpuRef { index, uuid: format!("GPU-{index}") },
            numa: Some(index % 2),
            taken_by: taken.then(|| "VPS 'web'".to_owned()),
            for_containers: true,
            no_container: None,
            no_machine: None,
            peers: Vec::new(),
        })
        .collect();
    node
}

fn cores(cores: u32) -> Demand {
    Demand { cores, ..Demand::default() }
}

fn gpus(gpus: GpuDemand) -> Demand {
    Demand { gpus, ..Demand::default() }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn fullest_node_that_fits_is_chosen() {
    let nodes = [node("empty", 8, 0), node("busy", 8, 5), node("full", 8, 7)];
    assert_eq!(place(&cores(2), None, &nodes).unwrap().node, NodeId::new("busy"));
}

#[test]
fn nodes_with_gpus_are_reserved_for_gpu_demands() {
    let nodes = [with_gpus(node("gpu", 4, 3), &[false]), node("plain", 8, 0)];
    assert_eq!(place(&cores(1), None, &nodes).unwrap().node, NodeId::new("plain"));
    let placed = place(&gpus(GpuDemand::Count(1)), None, &nodes).unwrap();
    assert_eq!((placed.node, placed.gpus.len()), (NodeId::new("gpu"), 1));
}

#[test]
fn error_has_reason_per_node_and_nearest_fit() {
    let mut away = node("away", 8, 0);
    away.unavailable = Some("is offline".to_owned());
    let nodes = [away, node("small", 1, 0), node("mid", 4, 1)];
    let refusal = place(&cores(4), None, &nodes).unwrap_err();
    let text = refusal.to_string();
    for part in ["'away' is offline", "more than node 'small' has (1)", "'mid' has 3 of 4"] {
        assert!(text.contains(part), "{text}");
    }
    let Refusal::NoRoom { nearest, .. } = refusal else { panic!("{refusal:?}") };
    assert_eq!(nearest.as_deref(), Some("-c 3 would fit on 'mid'"));
}

#[test]
fn allocated_gpu_is_refused_with_its_instance() {
    let nodes = [with_gpus(node("n", 8, 0), &[true, false])];
    let place = |demand| place(&gpus(demand), Some(&name("n")), &nodes);
    assert_eq!(place(GpuDemand::Indices(vec![1])).unwrap().gpus[0].uuid, "GPU-1");
    let text = place(GpuDemand::Indices(vec![0])).unwrap_err().to_string();
    assert!(text.contains("GPU 0 of node 'n' is taken by VPS 'web'"), "{text}");
    let text = place(GpuDemand::Indices(vec![2])).unwrap_err().to_string();
    assert!(text.contains("no GPU 2"), "{text}");
    let text = place(GpuDemand::Count(2)).unwrap_err().to_string();
    assert!(text.contains("1 of 2 GPUs free"), "{text}");
}

#[test]
fn node_without_gpu_runtime_is_refused_with_reason() {
    let mut node = with_gpus(node("n", 8, 0), &[false]);
    node.no_gpu_runtime = Some("lacks the toolkit".to_owned());
    let nodes = [node];
    let demand = gpus(GpuDemand::Count(1));
    let wanted = place(&demand, Some(&name("n")), &nodes);
    assert!(matches!(wanted, Err(Refusal::NoGpuRuntime { .. })), "{wanted:?}");
    assert!(place(&demand, None, &nodes).unwrap_err().to_string().contains("lacks the toolkit"));
    assert!(place(&cores(1), None, &nodes).is_ok());
}

#[test]
fn numa_node_has_its_own_allocations() {
    let mut one = node("n", 8, 2);
    let room = |node, cpus, cores_taken| NumaRoom {
        pin: NumaPin { node, cpus },
        memory_bytes: 50 << 30,
        cores_taken,
        memory_taken: 0,
    };
    one.numa = vec![room(0, vec![0, 1, 2, 3], 2), room(1, vec![4, 5, 6, 7], 0)];
    let nodes = [one];
    let place = |cores, numa| {
        let demand = Demand { cores, numa: Some(numa), ..Demand::default() };
        place(&demand, Some(&name("n")), &nodes)
    };
    assert_eq!(place(4, 1).unwrap().numa.unwrap().cpus, [4, 5, 6, 7]);
    let nodes = [with_gpus(nodes[0].clone(), &[false, false, false, false])];
    let demand = Demand { gpus: GpuDemand::Count(2), numa: Some(1), ..Demand::default() };
    let placed = super::place(&demand, Some(&name("n")), &nodes).unwrap();
    let cards: Vec<_> = placed.gpus.iter().map(|gpu| gpu.index).collect();
    assert_eq!(cards, [1, 3], "the cards beside its processors");
    let text = place(4, 0).unwrap_err().to_string();
    assert!(text.contains("NUMA node 0 of node 'n' has 2 of 4 cores free"), "{text}");
    assert!(place(1, 7).unwrap_err().to_string().contains("no NUMA node 7 (it has 0, 1)"));
}

fn for_machine(gpus: GpuDemand) -> Demand {
    Demand { gpus, backend: BackendKind::Qemu, ..Demand::default() }
}

/// Cards 1 and 2 share a group, card 3 was never NVIDIA's.
fn with_groups() -> NodeCapacity {
    let mut node = with_gpus(node("n", 8, 0), &[false; 4]);
    node.gpus[1].peers = vec!["GPU-2".to_owned()];
    node.gpus[2].peers = vec!["GPU-1".to_owned()];
    node.gpus[3].for_containers = false;
    node.no_gpu_runtime = Some("lacks the toolkit".to_owned());
    node
}

fn numbers(nodes: &[NodeCapacity], demand: &Demand) -> Result<Vec<u32>, String> {
    let placed = place(demand, Some(&name("n")), nodes).map_err(|refusal| refusal.to_string())?;
    Ok(placed.gpus.iter().map(|gpu| gpu.index).collect())
}

#[test]
fn vm_gets_whole_groups_without_toolkit() {
    let nodes = [with_groups()];
    let numbers = |demand| numbers(&nodes, &for_machine(demand));
    assert_eq!(numbers(GpuDemand::Indices(vec![2])), Ok(vec![2, 1]), "what was asked for is first");
    assert_eq!(numbers(GpuDemand::Indices(vec![1, 2, 3])), Ok(vec![1, 2, 3]));
    assert_eq!(numbers(GpuDemand::Count(1)), Ok(vec![0]));
    assert_eq!(numbers(GpuDemand::Count(2)), Ok(vec![0, 3]));
    assert_eq!(numbers(GpuDemand::Count(3)), Ok(vec![0, 1, 2]));
    assert_eq!(numbers(GpuDemand::Count(4)).unwrap().len(), 4);
    let same = |indices: &[usize]| {
        GpuDemand::Same(indices.iter().map(|at| nodes[0].gpus[*at].gpu.clone()).collect())
    };
    assert_eq!(numbers(same(&[2, 1])), Ok(vec![2, 1]));
    assert!(numbers(same(&[2])).unwrap_err().contains("GPU 1 of node 'n' shares an IOMMU group"));
}

#[test]
fn group_with_allocated_gpu_is_unavailable() {
    let mut node = with_groups();
    node.gpus[2].taken_by = Some("VPS 'web'".to_owned());
    let nodes = [node];
    let text = numbers(&nodes, &for_machine(GpuDemand::Indices(vec![1]))).unwrap_err();
    assert!(text.contains("GPU 2 of node 'n' is taken by VPS 'web'"), "{text}");
    assert_eq!(numbers(&nodes, &for_machine(GpuDemand::Count(2))), Ok(vec![0, 3]));
    let text = numbers(&nodes, &for_machine(GpuDemand::Count(3))).unwrap_err();
    assert!(text.contains("2 of 4 GPUs free, 3 requested (GPU 1 is given only with"), "{text}");
}

#[test]
fn gpu_unusable_by_vms_is_refused_with_reason() {
    let mut node = with_groups();
    for room in &mut node.gpus {
        room.no_machine = Some("the IOMMU is off".to_owned());
    }
    let nodes = [node];
    for demand in [GpuDemand::Indices(vec![0]), GpuDemand::Count(1)] {
        let text = numbers(&nodes, &for_machine(demand)).unwrap_err();
        assert!(text.contains("cannot be given to a virtual machine: the IOMMU is off"), "{text}");
    }
}

#[test]
fn container_gets_single_nvidia_cards_without_vfio() {
    let mut node = with_groups();
    node.no_gpu_runtime = None;
    node.gpus[0].no_container = Some("is with vfio-pci".to_owned());
    let nodes = [node];
    assert_eq!(numbers(&nodes, &gpus(GpuDemand::Indices(vec![2]))), Ok(vec![2]));
    assert_eq!(numbers(&nodes, &gpus(GpuDemand::Count(2))), Ok(vec![1, 2]));
    let text = numbers(&nodes, &gpus(GpuDemand::Count(3))).unwrap_err();
    assert!(text.contains("2 of 3 GPUs free, 3 requested (GPU 0 of node 'n' is with"), "{text}");
    let text = numbers(&nodes, &gpus(GpuDemand::Indices(vec![3]))).unwrap_err();
    assert!(text.contains("for virtual machines only"), "{text}");
    // A node without any of those lacks no toolkit.
    let mut other = with_gpus(super::tests::node("n", 8, 0), &[false]);
    other.gpus[0].for_containers = false;
    other.no_gpu_runtime = Some("lacks the toolkit".to_owned());
    let text = numbers(&[other], &gpus(GpuDemand::Count(1))).unwrap_err();
    assert!(text.contains("0 of 0 GPUs free"), "{text}");
}

proptest! {
    #[test]
    fn vm_has_exactly_its_whole_groups(
        cards in proptest::collection::vec((0u32..4, any::<bool>(), any::<bool>()), 0..8),
        count in 0u32..8,
    ) {
        let taken: Vec<bool> = cards.iter().map(|(_, taken, _)| *taken).collect();
        let mut node = with_gpus(node("n", 8, 0), &taken);
        for (at, (group, _, refused)) in cards.iter().enumerate() {
            node.gpus[at].peers = cards.iter().enumerate()
                .filter(|(other, (its, ..))| *other != at && its == group)
                .map(|(other, _)| format!("GPU-{other}")).collect();
            node.gpus[at].no_machine = refused.then(|| "it stays".to_owned());
        }
        let demand = for_machine(GpuDemand::Count(count));
        if let Ok(placed) = place(&demand, None, &[node.clone()]) {
            prop_assert!(placed.gpus.len() >= count as usize);
            for gpu in &placed.gpus {
                let room = node.gpus.iter().find(|room| room.gpu == *gpu).unwrap();
                prop_assert!(room.taken_by.is_none() && room.no_machine.is_none());
                for peer in &room.peers {
                    prop_assert!(placed.gpus.iter().any(|other| other.uuid == *peer));
                }
            }
            let unique: std::collections::BTreeSet<_> = placed.gpus.iter().map(|g| g.index).collect();
            prop_assert_eq!(unique.len(), placed.gpus.len());
        }
    }

    #[test]
    fn placement_always_fits(
        wanted in 0u32..10, memory in 0u64..120, count in 0u32..4,
        nodes in proptest::collection::vec((0u32..9, 0u32..9, proptest::collection::vec(any::<bool>(), 0..4)), 0..6)
    ) {
        let nodes: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(i, (total, used, taken))| with_gpus(node(&format!("n{i}"), *total, *used), taken))
            .collect();
        let memory_bytes = memory << 30;
        let demand = Demand { cores: wanted, memory_bytes, gpus: GpuDemand::Count(count), ..Demand::default() };
        let placed = place(&demand, None, &nodes);
        if let Ok(placed) = placed {
            let chosen = nodes.iter().find(|node| node.id == placed.node).unwrap();
            prop_assert!(wanted == 0 || chosen.cores_taken + wanted <= chosen.cores);
            prop_assert!(chosen.memory_taken + memory_bytes <= chosen.memory_bytes);
            prop_assert_eq!(placed.gpus.len(), count as usize);
            for gpu in &placed.gpus {
                let room = chosen.gpus.iter().find(|room| room.gpu == *gpu).unwrap();
                prop_assert!(room.taken_by.is_none());
            }
        }
    }
}
