//! All instances of this node: finds or makes the driver an order is for.
//!
//! ```text
//!  unknown --order--> driven --deleted--> unknown
//!  damaged --order, its record is made anew--> driven
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kohakuriver_model::{BackendKind, FailureCode, InstanceId};
use kohakuriver_runner_link::protocol::{
    InstanceCommand, InstanceReply, NodeQuery, NodeReply, Order,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use crate::backend::{Backend, Change};
use crate::clock;
use crate::driver::{Command, Shared, command};
use crate::ledger::{LedgerError, Record};

mod keeper;

use keeper::Keeper;

/// Events say what happened; this is for what no event told.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

pub struct InstanceSupervisor {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    drivers: Mutex<HashMap<InstanceId, Handle>>,
    /// Instances whose records cannot be read, until the host says what they should be.
    damaged: Mutex<HashSet<InstanceId>>,
}

/// Commands waiting for one instance; more come from a client in a loop.
const COMMANDS: usize = 16;

struct Handle {
    kind: BackendKind,
    orders: watch::Sender<Order>,
    commands: mpsc::Sender<Command>,
    nudges: Arc<Notify>,
}

fn not_done(message: String) -> NodeReply {
    let hint = Some("the node's owner finds the cause in the runner's log".to_owned());
    NodeReply::Failed { code: FailureCode::Internal, message, hint }
}

impl InstanceSupervisor {
    /// Starts a driver for every record of the ledger.
    pub fn new(
        shared: Arc<Shared>,
        records: Vec<Record>,
        damaged: HashMap<InstanceId, LedgerError>,
    ) -> Arc<Self> {
        for (id, error) in &damaged {
            tracing::error!(task.id = %id, %error, "a record is damaged; the host's next order rebuilds it");
        }
        let supervisor = Arc::new(Self {
            shared,
            tracker: TaskTracker::new(),
            drivers: Mutex::default(),
            damaged: Mutex::new(damaged.into_keys().collect()),
        });
        for record in records {
            let mut drivers = supervisor.lock();
            supervisor.drive(&mut drivers, record);
        }
        supervisor
    }

    /// Hands an order to its driver; older ones than it has are ignored there.
    pub fn order(&self, order: Order) {
        let mut drivers = self.lock();
        if let Some(handle) = drivers.get(&order.task_id)
            && !handle.orders.is_closed()
        {
            handle.orders.send_if_modified(|newest| {
                let newer = order.intent.generation > newest.intent.generation;
                if newer {
                    *newest = order;
                }
                newer
            });
            return;
        }
        let id = order.task_id;
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if !damaged.contains(&id) {
            // A driver that ended has forgotten its instance; what is ordered now is a new one.
            return self.drive(&mut drivers, Record::new(order, clock::now_ms()));
        }
        if let Err(error) = self.shared.ledger.set_aside(id) {
            // The host orders again when the runner is back.
            return tracing::error!(task.id = %id, %error, "cannot set a damaged record aside");
        }
        tracing::warn!(task.id = %id, "rebuilding a damaged record; the old one is order.json.damaged");
        damaged.remove(&id);
        self.drive(&mut drivers, Record::rebuilt(order, clock::now_ms()));
    }

    /// Runs a command on an instance and returns its reply.
    pub async fn execute(&self, id: InstanceId, command: InstanceCommand) -> InstanceReply {
        let known = self.lock().get(&id).map(|handle| (handle.kind, handle.commands.clone()));
        if let InstanceCommand::ListSnapshots { before } = command {
            let kind = known.map_or(BackendKind::Docker, |(kind, _)| kind);
            let listed = command::list(&**self.shared.backends.of(kind), id, before).await;
            return listed.unwrap_or_else(|error| command::failed(&error));
        }
        let gone = || InstanceReply::Failed {
            code: FailureCode::Disappeared,
            message: "the instance is not on this node".to_owned(),
            hint: None,
        };
        let Some((_, commands)) = known else {
            return gone();
        };
        let (reply, answer) = oneshot::channel();
        if commands.try_send(Command { command, reply }).is_err() {
            return InstanceReply::Failed {
                code: FailureCode::Internal,
                message: "the instance has too many waiting commands".to_owned(),
                hint: Some("try again in a few seconds".to_owned()),
            };
        }
        answer.await.unwrap_or_else(|_| gone())
    }

    /// Answers a query about this node's VMs.
    pub async fn query_node(&self, query: NodeQuery) -> NodeReply {
        match query {
            NodeQuery::ListVmImages => self.shared.backends.qemu.images(),
            NodeQuery::ListMachines => match self.shared.backends.qemu.retained() {
                Ok(mut machines) => {
                    let drivers = self.lock();
                    for machine in &mut machines {
                        machine.known = drivers.contains_key(&machine.task_id);
                    }
                    let dir = self.shared.layout.machines_dir().join("disks");
                    NodeReply::Machines { dir: dir.display().to_string(), machines }
                }
                Err(error) => not_done(error.to_string()),
            },
            NodeQuery::DeleteMachine { task_id, force } => {
                self.delete_machine(task_id, force).await
            }
        }
    }

    /// Removes a machine that the host has no row of. Its driver does it, if it has one.
    async fn delete_machine(&self, id: InstanceId, force: bool) -> NodeReply {
        let qemu = &self.shared.backends.qemu;
        let found = qemu.retained().unwrap_or_default().into_iter().find(|vm| vm.task_id == id);
        let Some(vm) = found else {
            return NodeReply::Failed {
                code: FailureCode::Disappeared,
                message: "no such VM on this node".to_owned(),
                hint: None,
            };
        };
        if vm.pid.is_some() && !force {
            return NodeReply::Failed {
                code: FailureCode::StartRefused,
                message: "the VM is running".to_owned(),
                hint: None,
            };
        }
        let known = self.lock().get(&id).map(|handle| handle.orders.clone());
        match known {
            Some(orders) => {
                let newest = orders.borrow().clone();
                orders.send_replace(Order { intent: newest.intent.delete(), ..newest });
                orders.closed().await;
            }
            None => {
                let removed = async {
                    qemu.remove(id).await?;
                    qemu.delete_all_snapshots(id).await
                };
                if let Err(error) = removed.await {
                    return not_done(error.to_string());
                }
                let _ = self.shared.ledger.forget(id);
            }
        }
        NodeReply::Deleted { freed_bytes: vm.disk_bytes }
    }

    /// Forwards the backends' hints to the drivers until the runner ends.
    pub async fn watch_backend(&self) {
        let backends = &self.shared.backends;
        let mut events = stream::select(backends.docker.events(), backends.qemu.events());
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            let change = tokio::select! {
                () = self.shared.shutdown.cancelled() => return,
                _ = ticks.tick() => Change::Everything,
                event = events.next() => match event {
                    Some(change) => change,
                    None => return,
                },
            };
            self.nudge(change);
        }
    }

    /// Logs instances that a backend has and the ledger does not. They stay: a user's disk may be
    /// the only copy.
    pub async fn report_orphans(&self) {
        for backend in self.shared.backends.all() {
            for (id, _) in backend.list().await.unwrap_or_default() {
                if !self.lock().contains_key(&id) {
                    tracing::warn!(task.id = %id, "an instance of this node is not in the ledger; left unchanged");
                }
            }
        }
    }

    /// Logs instances that the host did not order: it has lost them, or it is another host than
    /// before. They run on: a user's disk may be the only copy.
    pub fn report_unknown_to_host(&self, ordered: &HashSet<InstanceId>) {
        let drivers = self.lock();
        let living = drivers.iter().filter(|(_, handle)| !handle.orders.is_closed());
        for id in living.map(|(id, _)| id).filter(|id| !ordered.contains(id)) {
            tracing::warn!(
                task.id = %id,
                "the host does not know this instance; left unchanged"
            );
        }
    }

    /// Waits for drivers to end their step after shutdown was asked.
    pub async fn finish(&self, limit: Duration) {
        self.tracker.close();
        let _ = tokio::time::timeout(limit, self.tracker.wait()).await;
    }

    /// Returns the backend of an instance of this node.
    pub fn backend(&self, id: InstanceId) -> Option<Arc<dyn Backend>> {
        let kind = self.lock().get(&id)?.kind;
        Some(Arc::clone(self.shared.backends.of(kind)))
    }

    fn nudge(&self, change: Change) {
        let mut drivers = self.lock();
        drivers.retain(|_, handle| !handle.orders.is_closed());
        match change {
            Change::Instance(id) => {
                if let Some(handle) = drivers.get(&id) {
                    handle.nudges.notify_one();
                }
            }
            Change::Everything => {
                for handle in drivers.values() {
                    handle.nudges.notify_one();
                }
            }
        }
    }

    fn drive(&self, drivers: &mut HashMap<InstanceId, Handle>, record: Record) {
        let (id, kind) = (record.order.task_id, record.order.spec.backend());
        let (orders, receiver) = watch::channel(record.order.clone());
        let nudges = Arc::new(Notify::new());
        let (commands, asked) = mpsc::channel(COMMANDS);
        let keeper = Keeper {
            shared: Arc::clone(&self.shared),
            orders: receiver,
            commands: asked,
            nudges: Arc::clone(&nudges),
        };
        self.tracker.spawn(keeper.run(record));
        drivers.insert(id, Handle { kind, orders, commands, nudges });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Handle>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
