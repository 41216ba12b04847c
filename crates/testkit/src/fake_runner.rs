//! A runner without a node: it joins, connects and answers commands as the test configures.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use kohakuriver_model::node::{Gpu, GpuVfio, NumaNode};
use kohakuriver_model::{
    BackendKind, Desired, DockerState, FailureCode, GpuRuntime, InstanceId, Inventory, Metrics,
    Observation, Observed, VmAccel, VmState,
};
use kohakuriver_net::Prefixed;
use kohakuriver_runner_link::client::{LinkStream, connect_control, connect_data};
use kohakuriver_runner_link::enroll::enroll;
use kohakuriver_runner_link::frame::FrameStream;
use kohakuriver_runner_link::pki::RunnerIdentity;
use kohakuriver_runner_link::protocol::{
    Hello, InstanceCommand, InstanceReply, Machine, NodeQuery, NodeReply, Order, Snapshot,
    StreamOpen, StreamOpened, ToHost, ToRunner, VERSIONS, VmImage,
};
use kohakuriver_runner_link::token::JoinToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::TestHost;

/// The fake's behavior for a command.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// Executes the command at once.
    Obey,
    /// Sends no response.
    Ignore,
    /// Reports this state instead of running.
    Fail(Observed),
}

/// The directory of its virtual machines.
const MACHINE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

/// The directory of a virtual machine without a VPS, on every fake that runs virtual machines.
pub const ORPHAN: InstanceId = InstanceId::from_u64(1_234_567_890_123_456_789);

/// The bytes of a stream into an instance, after it was opened.
pub type AgentStream = Prefixed<LinkStream>;
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;
/// The service behind each stream.
type Agent = Arc<dyn Fn(StreamOpen, AgentStream) -> Serving + Send + Sync>;

/// A connected fake.
#[derive(Debug)]
pub struct FakeRunner {
    pub identity: RunnerIdentity,
    silent: Arc<AtomicBool>,
    orders: Arc<Mutex<HashMap<InstanceId, Order>>>,
    reports: mpsc::Sender<ToHost>,
    task: JoinHandle<Result<()>>,
}

/// A node of 8 cores and 16 GiB in two NUMA nodes, with two GPUs.
pub fn inventory() -> Inventory {
    let docker = DockerState::Ready { version: "27".to_owned() };
    let gpu = |index: u32| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "NVIDIA A100".to_owned(),
        pci_address: format!("00000000:0{index}:00.0"),
        memory_bytes: 80 << 30,
        numa: Some(index),
        no_container: None,
        vfio: GpuVfio::default(),
    };
    let numa =
        |id: u32| NumaNode { id, cpus: (id * 4..id * 4 + 4).collect(), memory_bytes: 8 << 30 };
    Inventory {
        kernel: "6.1".to_owned(),
        os: "Test".to_owned(),
        gpus: vec![gpu(0), gpu(1)],
        numa: vec![numa(0), numa(1)],
        gpu_runtime: GpuRuntime::Ready,
        ..Inventory::of(8, 16 << 30, docker)
    }
}

/// The same node with QEMU under emulation, and an IOMMU with both GPUs in one group.
pub fn vm_inventory() -> Inventory {
    let vm = VmState::Ready {
        version: "10.0".to_owned(),
        accel: VmAccel::Tcg,
        warning: Some("machines are emulated".to_owned()),
    };
    let mut machine = Inventory { vm, ..inventory() };
    let identities: Vec<String> = machine.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    for gpu in &mut machine.gpus {
        gpu.vfio = GpuVfio {
            group: Some(12),
            peers: identities.iter().filter(|other| **other != gpu.uuid).cloned().collect(),
            refusal: None,
            ..GpuVfio::default()
        };
    }
    machine
}

impl FakeRunner {
    /// Joins under `name` and connects.
    pub async fn join(host: &TestHost, name: &str, reaction: Reaction) -> Result<Self> {
        Self::join_as(host, name, reaction, inventory()).await
    }

    /// Joins as a node with this hardware.
    pub async fn join_as(
        host: &TestHost,
        name: &str,
        reaction: Reaction,
        inventory: Inventory,
    ) -> Result<Self> {
        let dir = host.data_dir().join(format!("runner-{name}"));
        std::fs::create_dir_all(&dir)?;
        let token = host.join_token().await?;
        let identity = enroll(&token, None, &name.parse()?, &dir, host.now_ms()).await?;
        Self::connect_as(host, identity, reaction, Vec::new(), inventory, None).await
    }

    /// Joins as a node that executes commands, and whose streams `agent` serves.
    pub async fn join_with_agent<F>(
        host: &TestHost,
        name: &str,
        agent: impl Fn(StreamOpen, AgentStream) -> F + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dir = host.data_dir().join(format!("runner-{name}"));
        std::fs::create_dir_all(&dir)?;
        Self::join_by(&host.join_token().await?, name, &dir, host.now_ms(), agent).await
    }

    /// Joins as [`Self::join_with_agent`] does, to a host that may be another process. `dir` stores
    /// the identity.
    pub async fn join_by<F>(
        token: &JoinToken,
        name: &str,
        dir: &Path,
        now_ms: i64,
        agent: impl Fn(StreamOpen, AgentStream) -> F + Send + Sync + 'static,
    ) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let identity = enroll(token, None, &name.parse()?, dir, now_ms).await?;
        let agent: Agent = Arc::new(move |open, stream| Box::pin(agent(open, stream)));
        let seen = Vec::new();
        Self::hello(identity, now_ms, Reaction::Obey, seen, inventory(), Some(agent)).await
    }

    /// Connects with an existing identity, after `seen` of its instances.
    pub async fn connect(
        host: &TestHost,
        identity: RunnerIdentity,
        reaction: Reaction,
        seen: Vec<(InstanceId, Observation)>,
    ) -> Result<Self> {
        Self::connect_as(host, identity, reaction, seen, inventory(), None).await
    }

    async fn connect_as(
        host: &TestHost,
        mut identity: RunnerIdentity,
        reaction: Reaction,
        seen: Vec<(InstanceId, Observation)>,
        inventory: Inventory,
        agent: Option<Agent>,
    ) -> Result<Self> {
        identity.host_address = host.host.link_address().clone();
        Self::hello(identity, host.now_ms(), reaction, seen, inventory, agent).await
    }

    async fn hello(
        identity: RunnerIdentity,
        now_ms: i64,
        reaction: Reaction,
        seen: Vec<(InstanceId, Observation)>,
        inventory: Inventory,
        agent: Option<Agent>,
    ) -> Result<Self> {
        let mut control = connect_control(&identity).await?;
        let hello = Hello {
            oldest_version: VERSIONS.0,
            newest_version: VERSIONS.1,
            runner_version: "test".to_owned(),
            now_ms,
            inventory,
        };
        control.send(&ToHost::Hello(hello)).await?;
        let answer = control.receive::<ToRunner>().await?;
        if let ToRunner::Refused { reason } = answer {
            bail!("refused: {reason}");
        }
        anyhow::ensure!(matches!(answer, ToRunner::Welcome { .. }), "no welcome but {answer:?}");
        for (task_id, observation) in seen {
            control.send(&ToHost::Observation { task_id, observation }).await?;
        }
        control.send(&ToHost::SyncDone).await?;
        let orders = Arc::new(Mutex::new(HashMap::new()));
        let (reports, queue) = mpsc::channel(64);
        let silent = Arc::new(AtomicBool::new(false));
        let node = Node {
            identity: identity.clone(),
            reaction,
            orders: orders.clone(),
            silent: silent.clone(),
            agent,
        };
        let task = tokio::spawn(serve(control, node, queue));
        Ok(Self { identity, silent, orders, reports, task })
    }

    /// Returns the newest command for a task.
    pub fn order(&self, task_id: InstanceId) -> Option<Order> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).get(&task_id).cloned()
    }

    /// Reports a state without a command.
    pub async fn report(
        &self,
        task_id: InstanceId,
        generation: u64,
        state: Observed,
    ) -> Result<()> {
        let observation =
            Observation { generation, state, ssh_host_key: None, warning: None, address: None };
        Ok(self.reports.send(ToHost::Observation { task_id, observation }).await?)
    }

    /// Stops executing and answering commands, as a node that hangs. Its streams continue.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// Drops the link; instances would continue to run.
    pub async fn disconnect(self) -> RunnerIdentity {
        self.task.abort();
        let _ = self.task.await;
        self.identity
    }

    /// Returns whether the host has ended the connection.
    pub fn is_disconnected(&self) -> bool {
        self.task.is_finished()
    }
}

type Control = FrameStream<LinkStream>;

struct Node {
    identity: RunnerIdentity,
    reaction: Reaction,
    orders: Arc<Mutex<HashMap<InstanceId, Order>>>,
    silent: Arc<AtomicBool>,
    agent: Option<Agent>,
}

async fn serve(mut control: Control, node: Node, mut queue: mpsc::Receiver<ToHost>) -> Result<()> {
    let Node { identity, reaction, orders, silent, agent } = node;
    let mut snapshots = HashMap::new();
    let mut orphaned = true;
    let mut beat = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = beat.tick() => control.send(&ToHost::Heartbeat { metrics: Metrics::default() }).await?,
            Some(report) = queue.recv() => control.send(&report).await?,
            message = control.receive::<ToRunner>() => match message? {
                ToRunner::Order(_) | ToRunner::InstanceCommand { .. } | ToRunner::NodeQuery { .. }
                    if silent.load(Ordering::SeqCst) => {}
                ToRunner::Order(order) => {
                    let answer = react(&reaction, &order);
                    let task_id = order.task_id;
                    orders.lock().unwrap_or_else(PoisonError::into_inner).insert(task_id, *order);
                    if let Some(observation) = answer {
                        control.send(&ToHost::Observation { task_id, observation }).await?;
                    }
                }
                ToRunner::DialData { count } => {
                    for _ in 0..count {
                        tokio::spawn(data(identity.clone(), agent.clone()));
                    }
                }
                ToRunner::InstanceCommand { request, task_id, command } => {
                    let answer = answer(&mut snapshots, task_id, command);
                    control.send(&ToHost::InstanceReply { request, answer }).await?;
                }
                ToRunner::NodeQuery { request, query } => {
                    let answer = answer_node(&orders, &mut orphaned, &query);
                    control.send(&ToHost::NodeReply { request, answer }).await?;
                }
                ToRunner::Welcome { .. }
                | ToRunner::Refused { .. }
                | ToRunner::SyncDone
                | ToRunner::HeartbeatAck
                | ToRunner::Certificate { .. } => {}
            },
        }
    }
}

/// Records names of snapshots, as an engine would store images.
fn answer(
    known: &mut HashMap<InstanceId, Vec<Snapshot>>,
    task_id: InstanceId,
    command: InstanceCommand,
) -> InstanceReply {
    let known = known.entry(task_id).or_default();
    match command {
        InstanceCommand::ListSnapshots { before } => InstanceReply::page(known.clone(), before),
        InstanceCommand::CreateSnapshot { name, message } => {
            let snapshot = Snapshot {
                tag: 100 + known.first().map_or(0, |newest| newest.tag - 99),
                name,
                message: message.unwrap_or_default(),
                size_bytes: 5,
                own_bytes: 2,
                in_use: false,
            };
            known.insert(0, snapshot.clone());
            InstanceReply::Created { snapshot }
        }
        InstanceCommand::DeleteSnapshot { tag } => {
            known.retain(|snapshot| snapshot.tag != tag);
            InstanceReply::Deleted
        }
    }
}

/// Returns one image, a directory for every commanded virtual machine, and one without a VPS.
fn answer_node(
    orders: &Mutex<HashMap<InstanceId, Order>>,
    orphaned: &mut bool,
    query: &NodeQuery,
) -> NodeReply {
    let machine = |task_id: InstanceId, known: bool| Machine {
        task_id,
        disk_bytes: 5 << 20,
        files: vec!["disk.qcow2".to_owned()],
        pid: known.then_some(42),
        known,
    };
    match query {
        NodeQuery::ListVmImages => match "debian-12".parse() {
            Ok(name) => NodeReply::VmImages {
                dir: "/shared/vm-images".to_owned(),
                images: vec![VmImage {
                    name,
                    file: "debian-12/disk.qcow2".to_owned(),
                    size_bytes: 300 << 20,
                    virtual_bytes: 3 << 30,
                    modified_ms: 1_790_000_000_500,
                }],
            },
            Err(_) => failed("no name"),
        },
        NodeQuery::ListMachines => {
            let orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
            let of_machines = |order: &&Order| order.spec.backend() == BackendKind::Qemu;
            let ordered = orders.values().filter(of_machines);
            let mut machines: Vec<_> = ordered.map(|order| machine(order.task_id, true)).collect();
            if *orphaned {
                machines.push(machine(ORPHAN, false));
            }
            NodeReply::Machines { dir: "/data/vm/disks".to_owned(), machines }
        }
        NodeQuery::DeleteMachine { task_id: ORPHAN, .. } if std::mem::take(orphaned) => {
            NodeReply::Deleted { freed_bytes: 5 << 20 }
        }
        NodeQuery::DeleteMachine { .. } => failed("there is no such machine"),
    }
}

fn failed(message: &str) -> NodeReply {
    let message = message.to_owned();
    NodeReply::Failed { code: FailureCode::Disappeared, message, hint: None }
}

fn react(reaction: &Reaction, order: &Order) -> Option<Observation> {
    let state = match (reaction, order.intent.desired) {
        (Reaction::Ignore, _) => return None,
        (_, Desired::Deleted) => Observed::Absent,
        (_, Desired::Stopped) => {
            Observed::Stopped { exit_code: Some(0), finished_at_ms: 2, oom: false }
        }
        (_, Desired::Killed) => {
            Observed::Stopped { exit_code: Some(137), finished_at_ms: 2, oom: false }
        }
        (Reaction::Fail(state), Desired::Running | Desired::Paused) => state.clone(),
        (Reaction::Obey, Desired::Paused) => Observed::Paused { started_at_ms: 1 },
        (Reaction::Obey, Desired::Running) => Observed::Running { started_at_ms: 1 },
    };
    let machine = order.spec.backend() == BackendKind::Qemu && !state.is_at_rest();
    Some(Observation {
        generation: order.intent.generation,
        state,
        ssh_host_key: None,
        warning: None,
        address: machine.then_some(MACHINE_ADDRESS),
    })
}

/// Serves a data connection: `agent`, or an echo preceded by the name of the requested target.
async fn data(identity: RunnerIdentity, agent: Option<Agent>) -> Result<()> {
    let mut frames = FrameStream::new(connect_data(&identity).await?);
    let open: StreamOpen = frames.receive().await?;
    frames.send(&StreamOpened::Opened).await?;
    let (stream, early) = frames.into_parts();
    let mut stream = Prefixed::new(stream, early);
    if let Some(agent) = agent {
        agent(open, stream).await;
        return Ok(());
    }
    stream.write_all(format!("hello from {}\n", open.task_id).as_bytes()).await?;
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(stream.shutdown().await?);
        }
        stream.write_all(&buffer[..count]).await?;
    }
}
