//! Allocations: never double, never more than a node has, never lost.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

use std::collections::{BTreeSet, HashMap};

use kohakuriver_model::node::{Gpu, GpuVfio};
use kohakuriver_model::{
    Act, Admission, Demand, Desired, DockerState, FailureCode, GpuDemand, GpuRuntime, ImageSource,
    InstanceId, InstanceSpec, Inventory, NodeId, Observation, Observed, SshAccess, admission,
    public_status,
};
use kohakuriver_store::{
    Change, Consent, CreateError, EventLimits, InstanceRow, NewEvent, NewInstance, RedeemError,
    Resolve, Scope, Store,
};
use proptest::prelude::*;

const CORES: u32 = 8;
const MEMORY: u64 = 1 << 30;
const GPUS: u32 = 3;

struct Cluster {
    store: Store,
    node: NodeId,
    _dir: tempfile::TempDir,
}

async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("host.db")).await.unwrap();
    let node = NodeId::new("n-1");
    store.create_join_token("hash", 0, 1000, None, None).await.unwrap();
    store.redeem_join_token("hash", &node, &"n1".parse().unwrap(), 1).await.unwrap();
    let gpu = |index: u32| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "A100".to_owned(),
        pci_address: String::new(),
        memory_bytes: 0,
        numa: None,
        no_container: None,
        // The last two share an IOMMU group.
        vfio: GpuVfio {
            group: Some(index.min(GPUS - 2)),
            peers: match GPUS - index {
                1 => vec![format!("GPU-{}", index - 1)],
                2 => vec![format!("GPU-{}", index + 1)],
                _ => Vec::new(),
            },
            refusal: None,
            ..GpuVfio::default()
        },
    };
    let docker = DockerState::Ready { version: "1".into() };
    let inventory = Inventory {
        gpus: (0..GPUS).map(gpu).collect(),
        gpu_runtime: GpuRuntime::Ready,
        ..Inventory::of(CORES, MEMORY, docker)
    };
    store.record_hello(&node, &inventory, "0", 0, 1).await.unwrap();
    Cluster { store, node, _dir: dir }
}

fn spec(cores: u32, memory_bytes: u64) -> InstanceSpec {
    InstanceSpec {
        cores,
        memory_bytes: (memory_bytes > 0).then_some(memory_bytes),
        ssh: Some(SshAccess::default()),
        ..InstanceSpec::new(ImageSource::Default)
    }
}

fn new(spec: InstanceSpec, gpus: GpuDemand) -> NewInstance {
    let demand = Demand {
        cores: spec.cores,
        memory_bytes: spec.memory_bytes.unwrap_or(0),
        gpus,
        numa: None,
        backend: spec.backend(),
    };
    let actor = "tester".to_owned();
    NewInstance {
        id: InstanceId::from_u64(1),
        spec,
        target: None,
        demand,
        actor,
        owner: None,
        consent: Consent::NotNeeded,
        names_others: true,
    }
}

impl Cluster {
    async fn create(&self, spec: InstanceSpec) -> Result<InstanceRow, CreateError> {
        self.create_with(spec, GpuDemand::None).await
    }

    async fn create_with(
        &self,
        spec: InstanceSpec,
        gpus: GpuDemand,
    ) -> Result<InstanceRow, CreateError> {
        self.store.create_instance(new(spec, gpus), &HashMap::new(), 5).await
    }

    async fn row(&self, id: InstanceId) -> Option<InstanceRow> {
        self.store.lookup_instance(id).await.unwrap()
    }

    async fn act(&self, id: InstanceId, act: Act) -> Result<(), CreateError> {
        self.act_with(id, act, |spec| spec).await
    }

    async fn act_with(
        &self,
        id: InstanceId,
        act: Act,
        edit: impl FnOnce(InstanceSpec) -> InstanceSpec,
    ) -> Result<(), CreateError> {
        let Some(row) = self.row(id).await else {
            return Ok(());
        };
        let status = public_status(&row.intent, row.observation.as_ref(), true);
        match admission::admit(act, row.spec.backend(), &row.intent, status) {
            Admission::Change(intent) => {
                let event =
                    NewEvent { kind: act.verb(), actor: "tester".into(), detail: "".into() };
                let change = Change { intent, spec: edit(row.spec.clone()), event, asker: None };
                self.store.change_instance(&row, &change, &HashMap::new(), 6).await
            }
            Admission::Already | Admission::Refused { .. } | Admission::Unsupported => Ok(()),
        }
    }

    async fn observe(&self, id: InstanceId, generation: u64, state: Observed) -> bool {
        let observation = seen(generation, state);
        self.store.record_observation(id, &self.node, &observation, None, 7).await.unwrap()
    }
}

fn seen(generation: u64, state: Observed) -> Observation {
    Observation { generation, state, ssh_host_key: None, warning: None, address: None }
}

#[tokio::test]
async fn proven_stop_releases_compute_and_keeps_port() {
    let cluster = cluster().await;
    let first = cluster.create(spec(8, 0)).await.unwrap();
    assert_eq!(first.ssh_port, Some(9000));
    cluster.observe(first.id, 1, Observed::Running { started_at_ms: 1 }).await;
    cluster.act(first.id, Act::Stop).await.unwrap();
    let refused = cluster.create(spec(1, 0)).await.unwrap_err();
    assert!(refused.to_string().contains("0 of 8 cores free"), "{refused}");

    cluster
        .observe(
            first.id,
            2,
            Observed::Stopped { exit_code: Some(0), finished_at_ms: 2, oom: false },
        )
        .await;
    let second = cluster.create(spec(1, 0)).await.unwrap();
    assert_eq!(second.ssh_port, Some(9001));
    let error = cluster.act(first.id, Act::Restart).await.unwrap_err();
    assert!(error.to_string().contains("7 of 8 cores free"), "{error}");
    assert_eq!(cluster.row(first.id).await.unwrap().intent.desired, Desired::Stopped);
}

#[tokio::test]
async fn delete_frees_the_port_but_never_the_id() {
    let cluster = cluster().await;
    let first = cluster.create(spec(0, 0)).await.unwrap();
    cluster.act(first.id, Act::Delete { force: true }).await.unwrap();
    cluster.observe(first.id, 1, Observed::Absent).await;
    assert!(cluster.row(first.id).await.is_some(), "an older report proves nothing");
    cluster.observe(first.id, 2, Observed::Absent).await;
    assert!(cluster.row(first.id).await.is_none());
    let second = cluster.create(spec(0, 0)).await.unwrap();
    assert_eq!(second.ssh_port, Some(9000));
    assert!(second.id > first.id);
}

#[tokio::test]
async fn events_of_every_act_outlive_the_instance() {
    let cluster = cluster().await;
    let row = cluster.create(spec(1, 0)).await.unwrap();
    cluster.act(row.id, Act::Kill).await.unwrap();
    cluster.act(row.id, Act::Delete { force: true }).await.unwrap();
    cluster.observe(row.id, 3, Observed::Absent).await;
    let events = cluster.store.list_events(row.id, 10).await.unwrap();
    let told: Vec<_> = events.iter().map(|e| (e.kind.as_str(), e.actor.as_str())).collect();
    let expected =
        [("create", "tester"), ("kill", "tester"), ("delete", "tester"), ("deleted", "node n1")];
    assert_eq!(told, expected);
    assert_eq!(cluster.store.list_events(row.id, 2).await.unwrap(), events[2..]);
    let id = row.id.to_string();
    assert_eq!(cluster.store.resolve_event_instance(&id).await.unwrap(), Some(row.id));
    assert_eq!(
        cluster.store.prune(EventLimits::default(), 200 * 24 * 3600 * 1000).await.unwrap(),
        4
    );
}

#[tokio::test]
async fn resize_that_does_not_fit_changes_nothing() {
    let cluster = cluster().await;
    let row = cluster.create(spec(6, 0)).await.unwrap();
    let resize = async |cores: u32| {
        cluster.act_with(row.id, Act::Update, |spec| InstanceSpec { cores, ..spec }).await
    };
    assert!(resize(9).await.unwrap_err().to_string().contains("more than node 'n1' has"));
    assert_eq!(cluster.row(row.id).await.unwrap().spec.cores, 6);
    // Its own six count as free for the eight.
    resize(8).await.unwrap();
    assert_eq!(cluster.store.list_nodes().await.unwrap()[0].cores_taken, 8);
}

#[tokio::test]
async fn drained_node_keeps_instances_and_takes_no_new_ones() {
    let cluster = cluster().await;
    let row = cluster.create(spec(1, 0)).await.unwrap();
    let name = "n1".parse().unwrap();
    cluster.store.set_drained(&name, true).await.unwrap();
    let refused = cluster.create(spec(1, 0)).await.unwrap_err().to_string();
    assert!(refused.contains("drained"), "{refused}");
    cluster.act(row.id, Act::Restart).await.unwrap();
    cluster.store.set_drained(&name, false).await.unwrap();
    cluster.create(spec(1, 0)).await.unwrap();
}

#[tokio::test]
async fn observation_of_another_node_is_ignored() {
    let cluster = cluster().await;
    let row = cluster.create(spec(1, 0)).await.unwrap();
    let lie = seen(9, Observed::Absent);
    let stranger = NodeId::new("n-2");
    assert!(!cluster.store.record_observation(row.id, &stranger, &lie, None, 7).await.unwrap());
    assert_eq!(cluster.row(row.id).await.unwrap().observation, None);
}

#[tokio::test]
async fn join_token_admits_one_node_once_before_expiry() {
    let cluster = cluster().await;
    let redeem = async |hash: &str, name: &str, now_ms| {
        let id = NodeId::new(format!("n-{name}"));
        cluster.store.redeem_join_token(hash, &id, &name.parse().unwrap(), now_ms).await
    };
    assert!(matches!(redeem("hash", "n2", 2).await, Err(RedeemError::Used { by }) if by == "n1"));
    assert!(matches!(redeem("other", "n2", 2).await, Err(RedeemError::Unknown)));
    cluster.store.create_join_token("late", 0, 10, None, None).await.unwrap();
    assert!(matches!(redeem("late", "n2", 10).await, Err(RedeemError::Expired)));
    assert!(matches!(redeem("late", "n1", 5).await, Err(RedeemError::NameTaken(_))));
    assert!(redeem("late", "n2", 9).await.is_ok(), "a refused name does not use the token up");
    let name = "n1".parse().unwrap();
    cluster.store.create_join_token("again", 0, 10, Some(&name), None).await.unwrap();
    let other = redeem("again", "n2", 5).await;
    assert!(matches!(other, Err(RedeemError::NameTaken(_))), "it readmits one node alone");
    assert_eq!(redeem("again", "n1", 5).await.unwrap(), cluster.node, "the node it was before");
}

#[tokio::test]
async fn id_prefix_and_name_resolve_or_report_ambiguity() {
    let cluster = cluster().await;
    let mut named = spec(0, 0);
    named.name = Some("web".parse().unwrap());
    let id = InstanceId::from_u64(7_398_213_345_412_345_856);
    let new = NewInstance { id, ..new(named, GpuDemand::None) };
    let web = cluster.store.create_instance(new.clone(), &HashMap::new(), 1).await.unwrap();
    let other = cluster.create(spec(0, 0)).await.unwrap();
    let resolve =
        async |text: &str| cluster.store.resolve_instance(text, Scope::ALL).await.unwrap();
    assert_eq!(resolve("web").await, Resolve::One(web.id));
    assert_eq!(resolve(&web.id.to_string()).await, Resolve::One(web.id));
    assert_eq!(resolve(&other.id.to_string()).await, Resolve::One(other.id));
    assert_eq!(resolve("73982").await, Resolve::Many(vec![web.id, other.id]));
    assert_eq!(resolve("8").await, Resolve::None);
    assert_eq!(resolve("we").await, Resolve::None);
    let again = cluster.store.create_instance(new, &HashMap::new(), 1).await.unwrap_err();
    assert!(matches!(again, CreateError::NameTaken(_)));
}

#[tokio::test]
async fn data_survives_reopening_the_database() {
    let cluster = cluster().await;
    let row = cluster.create(spec(2, MEMORY / 2)).await.unwrap();
    cluster.store.close().await;
    let store = Store::open(&cluster._dir.path().join("host.db")).await.unwrap();
    assert_eq!(store.lookup_instance(row.id).await.unwrap(), Some(row));
    assert_eq!(store.list_nodes().await.unwrap()[0].cores_taken, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        cores: u32,
        memory: u64,
        gpus: u32,
    },
    Resize {
        which: usize,
        cores: u32,
        memory: u64,
    },
    Act {
        which: usize,
        act: Act,
    },
    /// A report under the intent's generation minus `age`.
    Observe {
        which: usize,
        age: u64,
        state: Observed,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let act = prop_oneof![
        Just(Act::Stop),
        Just(Act::Kill),
        Just(Act::Restart),
        Just(Act::Restore),
        Just(Act::Pause),
        Just(Act::Resume),
        any::<bool>().prop_map(|force| Act::Delete { force })
    ];
    let state = prop_oneof![
        Just(Observed::Running { started_at_ms: 1 }),
        Just(Observed::Paused { started_at_ms: 1 }),
        Just(Observed::Stopped { exit_code: Some(1), finished_at_ms: 2, oom: false }),
        Just(Observed::Absent),
        Just(Observed::Failed { code: FailureCode::Internal, message: String::new(), hint: None }),
    ];
    prop_oneof![
        (0..5u32, 0..MEMORY / 2, 0..3u32).prop_map(|(cores, memory, gpus)| Step::Create {
            cores,
            memory,
            gpus
        }),
        (0..6usize, 0..9u32, 0..MEMORY).prop_map(|(which, cores, memory)| Step::Resize {
            which,
            cores,
            memory
        }),
        (0..6usize, act).prop_map(|(which, act)| Step::Act { which, act }),
        (0..6usize, 0..3u64, state).prop_map(|(which, age, state)| Step::Observe {
            which,
            age,
            state
        }),
    ]
}

/// `surprised`: an instance was started unasked, so more may run than the capacity.
async fn check(cluster: &Cluster, surprised: bool) {
    let rows = cluster.store.list_instances().await.unwrap();
    let held = |row: &&InstanceRow| row.holds_compute;
    let cores: u32 = rows.iter().filter(held).map(|row| row.spec.cores).sum();
    let memory: u64 = rows.iter().filter(held).map(|row| row.spec.memory_bytes.unwrap_or(0)).sum();
    let node = cluster.store.list_nodes().await.unwrap().remove(0);
    assert_eq!((node.cores_taken, node.memory_taken), (cores, memory), "the account is the sum");
    assert!(surprised || cores <= CORES && memory <= MEMORY, "more was given out than there is");
    let cards: Vec<_> = rows
        .iter()
        .filter(held)
        .flat_map(|row| row.spec.gpus.iter().map(|gpu| gpu.uuid.clone()))
        .collect();
    let owned: BTreeSet<_> = node.gpus_taken.iter().cloned().collect();
    assert_eq!(owned, cards.iter().cloned().collect(), "the cards given out are those held");
    assert!(surprised || cards.len() == owned.len(), "a card was given out twice");
    let mut ports: Vec<_> = rows.iter().filter_map(|row| row.ssh_port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), rows.len(), "every instance has a port of its own");
    for row in rows {
        let proven_at_rest = row.observation.as_ref().is_some_and(|seen| {
            seen.generation >= row.intent.start_generation && seen.state.is_at_rest()
        });
        if row.intent.desired.is_up() && !proven_at_rest {
            assert!(row.holds_compute, "{} may run and holds nothing", row.id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_allocated_twice_under_any_order_of_steps(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = cluster().await;
            let mut ids = Vec::new();
            let mut surprised = false;
            for step in steps {
                match step {
                    Step::Create { cores, memory, gpus } => {
                        let gpus = GpuDemand::Count(gpus);
                        if let Ok(row) = cluster.create_with(spec(cores, memory), gpus).await {
                            ids.push(row.id);
                        }
                    }
                    Step::Resize { which, cores, memory } => {
                        if let Some(id) = ids.get(which) {
                            let memory_bytes = (memory > 0).then_some(memory);
                            let edit = |spec| InstanceSpec { cores, memory_bytes, ..spec };
                            let _ = cluster.act_with(*id, Act::Update, edit).await;
                        }
                    }
                    Step::Act { which, act } => {
                        if let Some(id) = ids.get(which) {
                            let _ = cluster.act(*id, act).await;
                        }
                    }
                    Step::Observe { which, age, state } => {
                        if let Some(id) = ids.get(which)
                            && let Some(row) = cluster.row(*id).await
                        {
                            let generation = row.intent.generation.saturating_sub(age);
                            surprised |= !row.holds_compute && !state.is_at_rest();
                            cluster.observe(*id, generation, state).await;
                        }
                    }
                }
                check(&cluster, surprised).await;
            }
        });
    }
}

#[tokio::test]
async fn vm_takes_whole_gpu_group_exclusively() {
    let cluster = cluster().await;
    let name = "debian-12".parse().unwrap();
    let machine = InstanceSpec::new(ImageSource::VmImage { name });
    let row = cluster.create_with(machine.clone(), GpuDemand::Indices(vec![2])).await.unwrap();
    let cards: Vec<u32> = row.spec.gpus.iter().map(|gpu| gpu.index).collect();
    assert_eq!(cards, [2, 1], "the one that was asked for, and the other of its group");
    let refused = cluster.create_with(spec(0, 0), GpuDemand::Indices(vec![1])).await.unwrap_err();
    assert!(refused.to_string().contains("GPU 1 of node 'n1' is taken by"), "{refused}");
    let container = cluster.create_with(spec(0, 0), GpuDemand::Count(1)).await.unwrap();
    assert_eq!(container.spec.gpus[0].index, 0);
    let refused = cluster.create_with(machine, GpuDemand::Indices(vec![0])).await.unwrap_err();
    assert!(refused.to_string().contains("GPU 0 of node 'n1' is taken by"), "{refused}");
    // Both are released with the proof of its end, and taken again with its next start.
    cluster.act(row.id, Act::Stop).await.unwrap();
    let ended = Observed::Stopped { exit_code: Some(0), finished_at_ms: 1, oom: false };
    let generation = cluster.row(row.id).await.unwrap().intent.generation;
    assert!(cluster.observe(row.id, generation, ended).await);
    let other = cluster.create_with(spec(0, 0), GpuDemand::Indices(vec![1])).await.unwrap();
    let refused = cluster.act(row.id, Act::Restart).await.unwrap_err();
    assert!(refused.to_string().contains("GPU 1 of node 'n1' is taken by"), "{refused}");
    assert_eq!(other.spec.gpus.len(), 1);
}
