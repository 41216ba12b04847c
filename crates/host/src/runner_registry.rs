//! What runners say right now: who is connected, their figures, progress of work under way, and
//! the pools of data connections. Nothing here is the truth; all of it is told again at the next
//! hello.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kohakuriver_model::{FailureCode, InstanceId, Metrics, NodeId};
use kohakuriver_net::Socket;
use kohakuriver_runner_link::protocol::{
    InstanceCommand, InstanceReply, NodeQuery, NodeReply, StreamOpen, ToRunner,
};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Orders and requests waiting for one runner. A runner that does not take this many is stuck:
/// its connection is dropped and everything is told again.
const QUEUE: usize = 1024;
/// Idle data connections kept for one node; runners keep two.
const POOL: usize = 16;
/// One hour of heartbeats.
const HISTORY: usize = 720;

pub type DataConnection = TlsStream<TcpStream>;

/// A node whose runner is in this process: its agents are reached without a network between.
pub trait LocalNode: std::fmt::Debug + Send + Sync {
    /// # Errors
    /// Why the instance cannot be reached, for the person who asked.
    fn open(
        &self,
        open: StreamOpen,
    ) -> Pin<Box<dyn Future<Output = Result<Socket, String>> + Send + '_>>;
}

/// Steps of work under way, not worth a disk write each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: String,
    pub percent: Option<u8>,
    pub generation: u64,
    /// What is in the way, where something is.
    pub trouble: Option<Trouble>,
}

/// Why work under way does not get on. The runner goes on trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub code: FailureCode,
    pub message: String,
    pub hint: Option<String>,
}

/// What waits for one runner.
#[derive(Debug)]
pub enum Outgoing {
    /// The order of this instance, as its row is when its turn comes: many changes of one instance
    /// take no more memory than one.
    Order(InstanceId),
    Message(ToRunner),
}

/// One connected runner.
#[derive(Debug)]
pub struct Link {
    pub session: u64,
    queue: mpsc::Sender<Outgoing>,
    pub gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Node {
    link: Option<Link>,
    local: Option<Arc<dyn LocalNode>>,
    seen: Seen,
    metrics: Metrics,
    history: VecDeque<Sample>,
    /// Counts what changed of it, so that waiters see it as a revision of its instances.
    mark: u64,
    pool: VecDeque<DataConnection>,
    arrived: Arc<Notify>,
    dial_error: Option<String>,
}

/// When a node was last heard: for people, and for measuring its silence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub wall_ms: i64,
    pub steady_ms: i64,
}

impl Seen {
    pub fn now(clock: &Clock) -> Self {
        Self { wall_ms: clock.now_ms(), steady_ms: clock.steady_ms() }
    }
}

/// A node's figures at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at_ms: i64,
    pub metrics: Metrics,
}

/// Questions of one kind that runners have not answered yet.
#[derive(Debug)]
struct Open<A> {
    last: u64,
    waiting: HashMap<u64, (NodeId, oneshot::Sender<A>)>,
}

impl<A> Default for Open<A> {
    fn default() -> Self {
        Self { last: 0, waiting: HashMap::new() }
    }
}

impl<A> Open<A> {
    fn ask(&mut self, node: &NodeId) -> (u64, oneshot::Receiver<A>) {
        let (reply, answer) = oneshot::channel();
        // Who gave up waiting leaves his question behind.
        self.waiting.retain(|_, (_, reply)| !reply.is_closed());
        self.last += 1;
        self.waiting.insert(self.last, (node.clone(), reply));
        (self.last, answer)
    }

    fn answer(&mut self, node: &NodeId, request: u64, answer: A) {
        // Only the node that was asked may answer.
        if self.waiting.get(&request).is_some_and(|(asked, _)| asked == node)
            && let Some((_, reply)) = self.waiting.remove(&request)
        {
            let _ = reply.send(answer);
        }
    }

    /// Nobody will answer these any more: who asked hears it now.
    fn give_up(&mut self, node: &NodeId) {
        self.waiting.retain(|_, (asked, _)| asked != node);
    }
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<NodeId, Node>,
    progress: HashMap<InstanceId, Progress>,
    /// Counts changes of a task that are not in the database, so that waiters see them as
    /// revisions.
    marks: HashMap<InstanceId, u64>,
    commands: Open<InstanceReply>,
    node_queries: Open<NodeReply>,
    sessions: u64,
}

/// All links; shared by everything in the host.
#[derive(Debug, Default)]
pub struct RunnerRegistry {
    state: Mutex<State>,
}

impl RunnerRegistry {
    /// Every lock is short and without awaits; a panic inside one poisons nothing that matters.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a runner's session; an older one of the same node ends.
    pub fn register(
        &self,
        id: &NodeId,
        seen: Seen,
    ) -> (u64, mpsc::Receiver<Outgoing>, CancellationToken) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let mut state = self.lock();
        state.sessions += 1;
        let session = state.sessions;
        let node = state.nodes.entry(id.clone()).or_default();
        node.seen = seen;
        node.mark += 1;
        node.pool.clear();
        let link = Link { session, queue: sender, gone: gone.clone() };
        if let Some(old) = node.link.replace(link) {
            old.gone.cancel();
        }
        (session, receiver, gone)
    }

    /// Ends a session, unless a newer one took its place.
    pub fn unregister(&self, id: &NodeId, session: u64) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(id) else {
            return;
        };
        if node.link.as_ref().is_some_and(|link| link.session == session) {
            node.link = None;
            node.mark += 1;
            node.pool.clear();
            state.commands.give_up(id);
            state.node_queries.give_up(id);
        }
    }

    /// A removed node's connection ends at once.
    pub fn forget(&self, id: &NodeId) {
        let node = self.lock().nodes.remove(id);
        if let Some(link) = node.and_then(|node| node.link) {
            link.gone.cancel();
        }
    }

    pub fn record_heartbeat(&self, id: &NodeId, metrics: Option<Metrics>, seen: Seen) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.seen = seen;
            if let Some(metrics) = metrics {
                node.metrics = metrics;
                if node.history.len() == HISTORY {
                    node.history.pop_front();
                }
                node.history.push_back(Sample { at_ms: seen.wall_ms, metrics });
            }
        }
    }

    pub fn is_online(&self, id: &NodeId) -> bool {
        self.lock().nodes.get(id).is_some_and(|node| node.link.is_some())
    }

    /// When the node was last heard in this run of the host.
    pub fn seen(&self, id: &NodeId) -> Option<Seen> {
        self.lock().nodes.get(id).map(|node| node.seen)
    }

    pub fn metrics(&self, id: &NodeId) -> Option<Metrics> {
        let state = self.lock();
        state.nodes.get(id).filter(|node| node.link.is_some()).map(|node| node.metrics)
    }

    /// The last hour, oldest first.
    pub fn history(&self, id: &NodeId) -> Vec<Sample> {
        self.lock()
            .nodes
            .get(id)
            .map(|node| node.history.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Asks a connected runner something; `None` where it is away, or goes away meanwhile.
    pub async fn ask(
        &self,
        id: &NodeId,
        task_id: InstanceId,
        command: InstanceCommand,
    ) -> Option<InstanceReply> {
        let (request, answer) = {
            let mut state = self.lock();
            state.nodes.get(id)?.link.as_ref()?;
            state.commands.ask(id)
        };
        self.send(id, Outgoing::Message(ToRunner::InstanceCommand { request, task_id, command }));
        answer.await.ok()
    }

    /// As `ask`, about the node itself.
    pub async fn ask_node(&self, id: &NodeId, query: NodeQuery) -> Option<NodeReply> {
        let (request, answer) = {
            let mut state = self.lock();
            state.nodes.get(id)?.link.as_ref()?;
            state.node_queries.ask(id)
        };
        self.send(id, Outgoing::Message(ToRunner::NodeQuery { request, query }));
        answer.await.ok()
    }

    pub fn answer(&self, id: &NodeId, request: u64, answer: InstanceReply) {
        self.lock().commands.answer(id, request, answer);
    }

    pub fn answer_node(&self, id: &NodeId, request: u64, answer: NodeReply) {
        self.lock().node_queries.answer(id, request, answer);
    }

    /// Sends the order of an instance if its node is connected; otherwise its next hello gets it.
    pub fn order(&self, id: &NodeId, task_id: InstanceId) {
        self.send(id, Outgoing::Order(task_id));
    }

    fn send(&self, id: &NodeId, message: Outgoing) {
        let state = self.lock();
        let Some(link) = state.nodes.get(id).and_then(|node| node.link.as_ref()) else {
            return;
        };
        if link.queue.try_send(message).is_err() {
            link.gone.cancel();
        }
    }

    /// Answers whether that is another one than before.
    pub fn set_progress(&self, id: InstanceId, progress: Option<Progress>) -> bool {
        let mut state = self.lock();
        if state.progress.get(&id) == progress.as_ref() {
            return false;
        }
        *state.marks.entry(id).or_default() += 1;
        match progress {
            Some(progress) => state.progress.insert(id, progress),
            None => state.progress.remove(&id),
        };
        true
    }

    pub fn progress(&self, id: InstanceId) -> Option<Progress> {
        self.lock().progress.get(&id).cloned()
    }

    /// What is known of a deleted task goes with it.
    pub fn forget_task(&self, id: InstanceId) {
        let mut state = self.lock();
        state.progress.remove(&id);
        state.marks.remove(&id);
    }

    /// Counts something that changed without a database write: the node fell silent, or is back.
    pub fn count_change(&self, id: &NodeId) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.mark += 1;
        }
    }

    /// Grows with every change of the task or its node that is not in the database.
    pub fn mark(&self, id: InstanceId, node: &NodeId) -> u64 {
        let state = self.lock();
        let task = state.marks.get(&id).copied().unwrap_or_default();
        task + state.nodes.get(node).map_or(0, |node| node.mark)
    }

    /// Says that the node's runner is in this process.
    pub fn set_local(&self, id: &NodeId, local: Arc<dyn LocalNode>) {
        self.lock().nodes.entry(id.clone()).or_default().local = Some(local);
    }

    /// The node, if its runner is in this process and has said hello.
    pub fn local(&self, id: &NodeId) -> Option<Arc<dyn LocalNode>> {
        self.lock().nodes.get(id).filter(|node| node.link.is_some())?.local.clone()
    }

    /// Puts a data connection into its node's pool; one too many is closed.
    pub fn offer_data(&self, id: &NodeId, connection: DataConnection) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(id).filter(|node| node.link.is_some()) else {
            return;
        };
        if node.pool.len() < POOL {
            node.pool.push_back(connection);
            node.dial_error = None;
            node.arrived.notify_one();
        }
    }

    /// Takes an idle data connection; asks for one where there is none.
    pub fn take_data(&self, id: &NodeId) -> DataPool {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(id) else {
            return DataPool::Offline;
        };
        let Some(link) = &node.link else {
            return DataPool::Offline;
        };
        if let Some(connection) = node.pool.pop_front() {
            return DataPool::Ready(Box::new(connection));
        }
        if let Some(error) = node.dial_error.take() {
            return DataPool::Failed(error);
        }
        // A full queue is a stuck runner; its session ends by itself.
        let _ = link.queue.try_send(Outgoing::Message(ToRunner::DialData { count: 1 }));
        DataPool::Wait(node.arrived.clone())
    }

    /// The runner could not dial: whoever waits should hear it now, not at a time-out.
    pub fn dial_failed(&self, id: &NodeId, error: String) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.dial_error = Some(error);
            node.arrived.notify_one();
        }
    }
}

/// What the pool had.
#[derive(Debug)]
pub enum DataPool {
    Ready(Box<DataConnection>),
    /// One was asked for; wait for this and take again.
    Wait(Arc<Notify>),
    Failed(String),
    Offline,
}
