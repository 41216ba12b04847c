//! What runners say right now: who is connected, their figures, progress of work under way, and
//! the pools of data connections. Nothing here is the truth; all of it is told again at the next
//! hello.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kohakuriver_link::protocol::{Order, ToRunner};
use kohakuriver_model::{FailureCode, Metrics, NodeId, TaskId};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Orders and requests waiting for one runner. A runner that does not take this many is stuck:
/// its connection is dropped and everything is told again.
const QUEUE: usize = 1024;
/// Idle data connections kept for one node; runners keep two.
const POOL: usize = 16;

pub type DataConnection = TlsStream<TcpStream>;

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

/// One connected runner.
#[derive(Debug)]
pub struct Link {
    pub session: u64,
    queue: mpsc::Sender<ToRunner>,
    pub gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Node {
    link: Option<Link>,
    seen_ms: i64,
    metrics: Metrics,
    pool: VecDeque<DataConnection>,
    arrived: Arc<Notify>,
    dial_error: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<NodeId, Node>,
    progress: HashMap<TaskId, Progress>,
    /// Counts changes that are not in the database, so that waiters see them as revisions.
    sequence: u64,
    sessions: u64,
}

/// All links; shared by everything in the host.
#[derive(Debug, Default)]
pub struct Links {
    state: Mutex<State>,
}

impl Links {
    /// Every lock is short and without awaits; a panic inside one poisons nothing that matters.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a runner's session; an older one of the same node ends.
    pub fn register(
        &self,
        id: &NodeId,
        now_ms: i64,
    ) -> (u64, mpsc::Receiver<ToRunner>, CancellationToken) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let mut state = self.lock();
        state.sessions += 1;
        state.sequence += 1;
        let session = state.sessions;
        let node = state.nodes.entry(id.clone()).or_default();
        node.seen_ms = now_ms;
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
            node.pool.clear();
            state.sequence += 1;
        }
    }

    /// A removed node's connection ends at once.
    pub fn forget(&self, id: &NodeId) {
        let node = self.lock().nodes.remove(id);
        if let Some(link) = node.and_then(|node| node.link) {
            link.gone.cancel();
        }
    }

    pub fn record_heartbeat(&self, id: &NodeId, metrics: Option<Metrics>, now_ms: i64) {
        if let Some(node) = self.lock().nodes.get_mut(id) {
            node.seen_ms = now_ms;
            if let Some(metrics) = metrics {
                node.metrics = metrics;
            }
        }
    }

    pub fn is_online(&self, id: &NodeId) -> bool {
        self.lock().nodes.get(id).is_some_and(|node| node.link.is_some())
    }

    /// When the node was last heard in this run of the host.
    pub fn seen_ms(&self, id: &NodeId) -> Option<i64> {
        self.lock().nodes.get(id).map(|node| node.seen_ms)
    }

    pub fn metrics(&self, id: &NodeId) -> Option<Metrics> {
        let state = self.lock();
        state.nodes.get(id).filter(|node| node.link.is_some()).map(|node| node.metrics)
    }

    /// Sends an order if the node is connected; otherwise its next hello gets it.
    pub fn order(&self, id: &NodeId, order: Order) {
        self.send(id, ToRunner::Order(order));
    }

    fn send(&self, id: &NodeId, message: ToRunner) {
        let state = self.lock();
        let Some(link) = state.nodes.get(id).and_then(|node| node.link.as_ref()) else {
            return;
        };
        if link.queue.try_send(message).is_err() {
            link.gone.cancel();
        }
    }

    pub fn set_progress(&self, id: TaskId, progress: Option<Progress>) {
        let mut state = self.lock();
        state.sequence += 1;
        match progress {
            Some(progress) => state.progress.insert(id, progress),
            None => state.progress.remove(&id),
        };
    }

    pub fn progress(&self, id: TaskId) -> Option<Progress> {
        self.lock().progress.get(&id).cloned()
    }

    /// Counts something that changed without a database write, such as a node falling silent.
    pub fn count_change(&self) {
        self.lock().sequence += 1;
    }

    pub fn sequence(&self) -> u64 {
        self.lock().sequence
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
        let _ = link.queue.try_send(ToRunner::DialData { count: 1 });
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
