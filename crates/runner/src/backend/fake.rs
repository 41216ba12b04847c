//! A backend in memory, for tests only: instances are entries, agents are sockets.
//!
//! Each act is several steps, and leaves things between them as real ones do: a promise until the
//! disk is made, a disk until it has a record, a TAP until its process is gone. A test may stop an
//! act at any step ([`FakeBackend::pause_after`]), for good or until it goes on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use kohakuriver_agent_protocol::exec::{ExecExit, ExecFailed, ExecOutput};
use kohakuriver_agent_protocol::write;
use kohakuriver_model::{DockerState, InstanceId, InstanceSpec, Inventory};
use kohakuriver_runner_link::protocol::{Order, Snapshot};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, broadcast, watch};

use super::{
    Backend, BackendError, BackendState, Change, Lifecycle, Limits, Progress, SnapshotSpec,
};
use crate::agent_files;
use crate::agent_stream::AgentAddress;
use crate::clock::now_ms;
use crate::layout::Layout;

/// A fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    EngineAway,
    PullHangs,
    ImageMissing,
    CreateRefused,
    StartRefused,
    AgentEndsAtOnce,
    ResizeRefused,
    StopHangs,
    NotContained,
    /// Looking at an instance panics.
    InspectPanics,
    /// The description of an instance cannot be read.
    Damaged,
}

#[derive(Debug)]
pub struct FakeBackend {
    layout: Layout,
    state: Mutex<State>,
    events: broadcast::Sender<Change>,
    things: watch::Sender<BTreeSet<Thing>>,
    /// An act has come to the step at which it pauses.
    paused: Notify,
    go_on: Notify,
}

/// A part of an instance on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// The source of a disk that is about to be created.
    Promise,
    Disk,
    Tap,
    /// A snapshot that was begun.
    Freezing,
}

#[derive(Debug, Default)]
struct State {
    instances: HashMap<InstanceId, BackendState>,
    snapshots: HashMap<InstanceId, Vec<Snapshot>>,
    restarts: u32,
    faults: BTreeSet<Fault>,
    starts: u32,
    acts: Vec<&'static str>,
    /// Steps until one pauses.
    pause_after: Option<u32>,
    agents: HashMap<InstanceId, tokio::task::JoinHandle<()>>,
}

impl FakeBackend {
    pub fn new(layout: Layout) -> Arc<Self> {
        let events = broadcast::Sender::new(64);
        let things = watch::Sender::default();
        let (paused, go_on) = (Notify::new(), Notify::new());
        Arc::new(Self { layout, state: Mutex::default(), events, things, paused, go_on })
    }

    /// Pauses an act after this many further steps.
    pub fn pause_after(&self, steps: u32) {
        self.lock().pause_after = Some(steps);
    }

    /// Waits until one pauses.
    pub async fn paused(&self) {
        self.paused.notified().await;
    }

    pub fn go_on(&self) {
        self.go_on.notify_one();
    }

    /// Watches the parts of the test's only instance.
    pub fn things(&self) -> watch::Receiver<BTreeSet<Thing>> {
        self.things.subscribe()
    }

    pub fn has_snapshots(&self, id: InstanceId) -> bool {
        self.lock().snapshots.get(&id).is_some_and(|all| !all.is_empty())
    }

    async fn step(&self) {
        let pauses = {
            let mut state = self.lock();
            match state.pause_after {
                Some(0) => state.pause_after.take().is_some(),
                Some(left) => {
                    state.pause_after = Some(left - 1);
                    false
                }
                None => false,
            }
        };
        if pauses {
            self.paused.notify_one();
            self.go_on.notified().await;
        }
    }

    fn add(&self, thing: Thing) {
        self.things.send_modify(|things| {
            things.insert(thing);
        });
    }

    fn drop_things(&self, gone: &[Thing]) {
        self.things.send_modify(|things| things.retain(|thing| !gone.contains(thing)));
    }

    /// Ends it, and clears away what only one that runs has.
    async fn end(&self, id: InstanceId, exit_code: i64) -> Result<(), BackendError> {
        self.reachable()?.end(id, exit_code);
        self.step().await;
        self.drop_things(&[Thing::Tap]);
        Ok(())
    }

    pub fn fault(&self, fault: Fault, on: bool) {
        let mut state = self.lock();
        if on {
            state.faults.insert(fault)
        } else {
            state.faults.remove(&fault)
        };
        drop(state);
        let _ = self.events.send(Change::Everything);
    }

    pub fn acts(&self) -> Vec<&'static str> {
        self.lock().acts.clone()
    }

    pub fn die(&self, id: InstanceId, exit_code: i64) {
        self.lock().end(id, exit_code);
        let _ = self.events.send(Change::Instance(id));
    }

    /// As if the kernel had killed a process of it.
    pub fn run_out_of_memory(&self, id: InstanceId) {
        if let Some(found) = self.lock().instances.get_mut(&id) {
            found.oom = true;
        }
        let _ = self.events.send(Change::Instance(id));
    }

    /// The engine goes with all that runs, and is back at once.
    pub fn restart_engine(&self) {
        let mut state = self.lock();
        state.restarts += 1;
        let ids: Vec<_> = state.instances.keys().copied().collect();
        ids.into_iter().for_each(|id| state.end(id, 137));
        drop(state);
        let _ = self.events.send(Change::Everything);
    }

    fn save(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError> {
        let mut state = self.reachable()?;
        let snapshots = state.snapshots.entry(id).or_default();
        let snapshot = Snapshot {
            tag: snapshots.first().map_or(1, |newest| newest.tag + 1),
            name: wish.name.clone(),
            message: wish.message.clone(),
            size_bytes: 1,
            own_bytes: 1,
            in_use: false,
        };
        snapshots.insert(0, snapshot.clone());
        if keep > 0 {
            snapshots.truncate(keep as usize);
        }
        Ok(snapshot)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn reachable(&self) -> Result<MutexGuard<'_, State>, BackendError> {
        let state = self.lock();
        if state.faults.contains(&Fault::EngineAway) {
            return Err(BackendError::Unavailable { reason: "away".into(), hint: "wait".into() });
        }
        Ok(state)
    }
}

impl State {
    fn end(&mut self, id: InstanceId, exit_code: i64) {
        if let Some(agent) = self.agents.remove(&id) {
            agent.abort();
        }
        if let Some(found) = self.instances.get_mut(&id).filter(|found| is_up(found)) {
            found.life = Lifecycle::Ended { exit_code: Some(exit_code), finished_at_ms: now_ms() };
        }
    }
}

fn is_up(found: &BackendState) -> bool {
    matches!(found.life, Lifecycle::Running { .. } | Lifecycle::Paused { .. })
}

fn refused(act: &'static str) -> BackendError {
    BackendError::Refused { by: "the fake", act, reason: "no".to_owned() }
}

#[async_trait]
impl Backend for FakeBackend {
    async fn describe(&self, inventory: &mut Inventory) {
        inventory.docker = DockerState::Ready { version: "fake".to_owned() };
    }

    async fn prepare(&self, order: &Order, progress: Progress<'_>) -> Result<String, BackendError> {
        progress("pulling".to_owned(), Some(1));
        let faults = self.reachable()?.faults.clone();
        if faults.contains(&Fault::PullHangs) {
            std::future::pending::<()>().await;
        }
        if let Some(snapshot) = order.spec.snapshot {
            let known = self.list_snapshots(snapshot.task_id).await?;
            if !known.iter().any(|known| known.tag == snapshot.tag) {
                return Err(BackendError::SnapshotNotFound { which: snapshot.tag.to_string() });
            }
        }
        if faults.contains(&Fault::ImageMissing) {
            let image = format!("{:?}", order.spec.image);
            return Err(BackendError::ImageNotFound { image, reason: "none".to_owned() });
        }
        self.step().await;
        self.add(Thing::Promise);
        self.step().await;
        Ok("image".to_owned())
    }

    async fn create(&self, order: &Order, _: &str) -> Result<(), BackendError> {
        self.step().await;
        {
            let mut state = self.reachable()?;
            state.acts.push("create");
            if state.faults.contains(&Fault::CreateRefused)
                || state.instances.contains_key(&order.task_id)
            {
                return Err(refused("create"));
            }
        }
        self.add(Thing::Disk);
        self.step().await;
        let mut state = self.reachable()?;
        let found = BackendState {
            life: Lifecycle::Created,
            started: None,
            disk: order.intent.disk_generation,
            oom: false,
            limits: self.limits(&order.spec),
            epoch: String::new(),
        };
        state.instances.insert(order.task_id, found);
        self.drop_things(&[Thing::Promise]);
        Ok(())
    }

    async fn start(&self, id: InstanceId) -> Result<(), BackendError> {
        self.step().await;
        {
            let mut state = self.reachable()?;
            state.acts.push("start");
            if state.faults.contains(&Fault::StartRefused) {
                return Err(refused("start"));
            }
        }
        self.add(Thing::Tap);
        self.step().await;
        let mut state = self.reachable()?;
        state.starts += 1;
        let started = Some(state.starts.to_string());
        let found = state.instances.get_mut(&id).ok_or_else(|| refused("start"))?;
        if found.is_running() {
            return Ok(());
        }
        found.life = Lifecycle::Running { started_at_ms: now_ms() };
        (found.started, found.oom) = (started, false);
        if state.faults.contains(&Fault::AgentEndsAtOnce) {
            state.end(id, 127);
        } else {
            let agent = agent(&self.layout, id).map_err(|_| refused("start"))?;
            state.agents.insert(id, agent);
        }
        Ok(())
    }

    async fn contain(&self, _: InstanceId) -> Result<(), BackendError> {
        if self.reachable()?.faults.contains(&Fault::NotContained) {
            return Err(BackendError::NotContained { reason: "no".to_owned() });
        }
        Ok(())
    }

    async fn stop(&self, id: InstanceId) -> Result<(), BackendError> {
        let hangs = {
            let mut state = self.reachable()?;
            state.acts.push("stop");
            state.faults.contains(&Fault::StopHangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        self.step().await;
        self.end(id, 0).await
    }

    async fn remove(&self, id: InstanceId) -> Result<(), BackendError> {
        self.step().await;
        self.reachable()?.acts.push("remove");
        self.end(id, 137).await?;
        self.reachable()?.instances.remove(&id);
        self.step().await;
        self.drop_things(&[Thing::Disk]);
        Ok(())
    }

    async fn inspect(&self, id: InstanceId) -> Result<Option<BackendState>, BackendError> {
        let faults = self.lock().faults.clone();
        assert!(!faults.contains(&Fault::InspectPanics), "a test asked for it");
        if faults.contains(&Fault::Damaged) {
            let reason = "machine.json: expected a value".to_owned();
            return Err(BackendError::Refused { by: "the node", act: "use the disk of", reason });
        }
        let state = self.reachable()?;
        let epoch = state.restarts.to_string();
        Ok(state.instances.get(&id).cloned().map(|found| BackendState { epoch, ..found }))
    }

    async fn pause(&self, id: InstanceId) -> Result<(), BackendError> {
        let mut state = self.reachable()?;
        state.acts.push("pause");
        if let Some(found) = state.instances.get_mut(&id)
            && let Lifecycle::Running { started_at_ms } = found.life
        {
            found.life = Lifecycle::Paused { started_at_ms };
        }
        Ok(())
    }

    async fn resume(&self, id: InstanceId) -> Result<(), BackendError> {
        let mut state = self.reachable()?;
        state.acts.push("resume");
        if let Some(found) = state.instances.get_mut(&id)
            && let Lifecycle::Paused { started_at_ms } = found.life
        {
            found.life = Lifecycle::Running { started_at_ms };
        }
        Ok(())
    }

    async fn kill(&self, id: InstanceId) -> Result<(), BackendError> {
        self.step().await;
        self.reachable()?.acts.push("kill");
        self.end(id, 137).await
    }

    async fn resize(&self, id: InstanceId, spec: &InstanceSpec) -> Result<(), BackendError> {
        let mut state = self.reachable()?;
        state.acts.push("resize");
        let running = state.instances.get(&id).is_some_and(is_up);
        if running && state.faults.contains(&Fault::ResizeRefused) {
            return Err(refused("resize"));
        }
        if let Some(found) = state.instances.get_mut(&id) {
            found.limits = self.limits(spec);
        }
        Ok(())
    }

    fn limits(&self, spec: &InstanceSpec) -> Limits {
        let memory_bytes = spec.memory_bytes.unwrap_or(0);
        Limits { cores: spec.cores, memory_bytes, pids: spec.pids_limit }
    }

    async fn create_snapshot(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError> {
        self.step().await;
        {
            let mut state = self.reachable()?;
            state.acts.push("snapshot");
            if !state.instances.contains_key(&id) {
                return Err(refused("save"));
            }
        }
        self.add(Thing::Freezing);
        self.step().await;
        let snapshot = self.save(id, wish, keep)?;
        self.step().await;
        self.drop_things(&[Thing::Freezing]);
        Ok(snapshot)
    }

    async fn list_snapshots(&self, id: InstanceId) -> Result<Vec<Snapshot>, BackendError> {
        Ok(self.reachable()?.snapshots.get(&id).cloned().unwrap_or_default())
    }

    async fn tidy(&self, id: InstanceId) -> Result<(), BackendError> {
        let life = self.reachable()?.instances.get(&id).map(|found| found.life);
        self.step().await;
        self.drop_things(&[Thing::Promise, Thing::Freezing]);
        match life {
            None => self.drop_things(&[Thing::Disk, Thing::Tap]),
            Some(Lifecycle::Created | Lifecycle::Ended { .. }) => self.drop_things(&[Thing::Tap]),
            Some(Lifecycle::Running { .. } | Lifecycle::Paused { .. }) => {}
        }
        Ok(())
    }

    async fn delete_snapshot(&self, id: InstanceId, tag: u64) -> Result<(), BackendError> {
        let mut state = self.reachable()?;
        let snapshots = state.snapshots.entry(id).or_default();
        let count = snapshots.len();
        snapshots.retain(|snapshot| snapshot.tag != tag);
        if snapshots.len() == count {
            return Err(BackendError::SnapshotNotFound { which: tag.to_string() });
        }
        Ok(())
    }

    async fn delete_all_snapshots(&self, id: InstanceId) -> Result<(), BackendError> {
        self.step().await;
        self.reachable()?.snapshots.remove(&id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(InstanceId, BackendState)>, BackendError> {
        Ok(self.reachable()?.instances.iter().map(|(id, found)| (*id, found.clone())).collect())
    }

    fn agent(&self, id: InstanceId) -> Option<AgentAddress> {
        Some(AgentAddress::Socket(self.layout.run(id)))
    }

    fn boot_limit(&self) -> Duration {
        Duration::from_secs(30)
    }

    async fn refresh_settings(&self, order: &Order) -> io::Result<()> {
        agent_files::refresh_settings(&self.layout, order)
    }

    async fn log_tail(&self, _: InstanceId) -> String {
        "its last words".to_owned()
    }

    async fn attach(&self, id: InstanceId, mut stream: UnixStream) {
        let message = match self.inspect(id).await {
            Ok(Some(found)) if is_up(&found) => ExecOutput::Exit(ExecExit::Code(0)),
            Ok(_) | Err(_) => {
                ExecOutput::Failed(ExecFailed { code: 126, message: "not up".into() })
            }
        };
        let _ = write(&mut stream, &message).await;
    }

    fn events(&self) -> BoxStream<'static, Change> {
        let receiver = self.events.subscribe();
        futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.ok().map(|change| (change, receiver))
        })
        .boxed()
    }
}

fn agent(layout: &Layout, id: InstanceId) -> io::Result<tokio::task::JoinHandle<()>> {
    let path = layout.run(id).join("agent.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path)?;
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = String::new();
            let _ = BufReader::new(&mut stream).read_line(&mut line).await;
            let _ = stream.write_all(b"{\"ok\":true,\"pid\":1,\"version\":\"0\"}\n").await;
        }
    }))
}
