//! The state of connected runners: sessions, metrics, progress of work under way, and pools of data
//! connections. Nothing here is authoritative; runners report all of it again at the next hello.

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

/// Commands and queries waiting for one runner. A runner with a full queue is stuck: it is
/// disconnected and gets everything again.
const QUEUE: usize = 1024;
/// Idle data connections held for one node; runners keep two.
const POOL: usize = 16;
/// Samples in one hour of heartbeats.
const HISTORY: usize = 720;

pub type DataConnection = TlsStream<TcpStream>;

/// A node whose runner is in this process: its agents are connected without a network.
pub trait LocalNode: std::fmt::Debug + Send + Sync {
    /// # Errors
    /// Returns why the instance cannot be reached, as a message for the caller.
    fn open(
        &self,
        open: StreamOpen,
    ) -> Pin<Box<dyn Future<Output = Result<Socket, String>> + Send + '_>>;
}

/// A step of work under way, not worth a disk write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub step: String,
    pub percent: Option<u8>,
    pub generation: u64,
    /// The current obstacle, if there is one.
    pub trouble: Option<Trouble>,
}

/// An obstacle to work under way. The runner keeps trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub code: FailureCode,
    pub message: String,
    pub hint: Option<String>,
}

/// An entry of a runner's queue.
#[derive(Debug)]
pub enum Outgoing {
    /// The command of this instance, built from its row when its turn comes: many changes of one
    /// instance take no more memory than one.
    Order(InstanceId),
    Message(ToRunner),
}

/// A connected runner.
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
    /// Counts its changes, so that waiters see them as a revision of its instances.
    mark: u64,
    pool: VecDeque<DataConnection>,
    arrived: Arc<Notify>,
    dial_error: Option<String>,
}

/// When a node was last heard: wall time for display, monotonic time for timeouts.
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

/// A node's metrics at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at_ms: i64,
    pub metrics: Metrics,
}

/// Unanswered queries of one kind.
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
        // Drops queries whose caller timed out.
        self.waiting.retain(|_, (_, reply)| !reply.is_closed());
        self.last += 1;
        self.waiting.insert(self.last, (node.clone(), reply));
        (self.last, answer)
    }

    fn answer(&mut self, node: &NodeId, request: u64, answer: A) {
        // Only the queried node may reply.
        if self.waiting.get(&request).is_some_and(|(asked, _)| asked == node)
            && let Some((_, reply)) = self.waiting.remove(&request)
        {
            let _ = reply.send(answer);
        }
    }

    /// Fails the node's open queries at once.
    fn drop_node(&mut self, node: &NodeId) {
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

/// All runner sessions, shared by the whole host.
#[derive(Debug, Default)]
pub struct RunnerRegistry {
    state: Mutex<State>,
}

impl RunnerRegistry {
    /// Locks the state. Locks are short and without awaits, so a panic inside one leaves it usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a runner's session and ends an older one of the same node.
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

    /// Ends a session, unless a newer one replaced it.
    pub fn unregister(&self, id: &NodeId, session: u64) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(id) else {
            return;
        };
        if node.link.as_ref().is_some_and(|link| link.session == session) {
            node.link = None;
            node.mark += 1;
            node.pool.clear();
            state.commands.drop_node(id);
            state.node_queries.drop_node(id);
        }
    }

    /// Ends a removed node's connection at once.
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

    /// Returns when the node was last heard since the host started.
    pub fn seen(&self, id: &NodeId) -> Option<Seen> {
        self.lock().nodes.get(id).map(|node| node.seen)
    }

    pub fn metrics(&self, id: &NodeId) -> Option<Metrics> {
        let state = self.lock();
        state.nodes.get(id).filter(|node| node.link.is_some()).map(|node| node.metrics)
    }

    /// Returns the last hour's samples, oldest first.
    pub fn history(&self, id: &NodeId) -> Vec<Sample> {
        self.lock()
            .nodes
            .get(id)
            .map(|node| node.history.iter().copied().collect())
            .unwrap_or_default()
    }

    /// Sends a query to a connected runner; `None` where it is, or becomes, disconnected.
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

    /// Does the same as `ask` for the node itself.
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

    /// Queues the instance's command if its node is connected; otherwise the node's next hello gets
    /// it.
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

    /// Sets a task's progress. Returns whether it changed.
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

    /// Removes what is known of a deleted task.
    pub fn forget_task(&self, id: InstanceId) {
        let mut state = self.lock();
        state.progress.remove(&id);
        state.marks.remove(&id);
    }

    /// Counts a change without a database write: the node fell silent, or is back.
    pub fn count_change(&self, id: &NodeId) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.mark += 1;
        }
    }

    /// Returns a counter that grows with every change of the task or its node outside the database.
    pub fn mark(&self, id: InstanceId, node: &NodeId) -> u64 {
        let state = self.lock();
        let task = state.marks.get(&id).copied().unwrap_or_default();
        task + state.nodes.get(node).map_or(0, |node| node.mark)
    }

    /// Registers the node's runner as one in this process.
    pub fn set_local(&self, id: &NodeId, local: Arc<dyn LocalNode>) {
        self.lock().nodes.entry(id.clone()).or_default().local = Some(local);
    }

    /// Returns the node if its runner is in this process and has said hello.
    pub fn local(&self, id: &NodeId) -> Option<Arc<dyn LocalNode>> {
        self.lock().nodes.get(id).filter(|node| node.link.is_some())?.local.clone()
    }

    /// Adds a data connection to its node's pool; a full pool closes it.
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

    /// Takes an idle data connection; if none is idle, requests one from the runner.
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
        // A full queue is a stuck runner; its session ends on its own.
        let _ = link.queue.try_send(Outgoing::Message(ToRunner::DialData { count: 1 }));
        DataPool::Wait(node.arrived.clone())
    }

    /// Wakes the waiters after a failed dial, so that they need not time out.
    pub fn dial_failed(&self, id: &NodeId, error: String) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.dial_error = Some(error);
            node.arrived.notify_one();
        }
    }
}

/// The outcome of taking a data connection.
#[derive(Debug)]
pub enum DataPool {
    Ready(Box<DataConnection>),
    /// A connection was requested; wait for this and take again.
    Wait(Arc<Notify>),
    Failed(String),
    Offline,
}
