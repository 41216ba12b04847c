//! All instances of this node: finds or makes the driver an order is for.
//!
//! ```text
//!  unknown --order--> driven --deleted--> unknown
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use kohakuriver_link::protocol::Order;
use kohakuriver_model::TaskId;
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use crate::backend::Change;
use crate::clock;
use crate::driver::{Driver, Shared};
use crate::ledger::Record;

/// Events say what happened; this is for what no event told.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

pub struct Fleet {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    drivers: Mutex<HashMap<TaskId, Handle>>,
}

struct Handle {
    orders: watch::Sender<Order>,
    nudges: Arc<Notify>,
}

impl Fleet {
    /// Takes up everything the ledger knows.
    pub fn new(shared: Arc<Shared>, records: Vec<Record>) -> Arc<Self> {
        let fleet =
            Arc::new(Self { shared, tracker: TaskTracker::new(), drivers: Mutex::default() });
        for record in records {
            let mut drivers = fleet.lock();
            fleet.drive(&mut drivers, record);
        }
        fleet
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
        // A driver that ended has forgotten its instance; what is ordered now is a new one.
        self.drive(&mut drivers, Record::new(order, clock::now_ms()));
    }

    /// Passes the backend's hints on until the runner ends.
    pub async fn watch_backend(&self) {
        let mut events = self.shared.backend.events();
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
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

    /// Tells of containers that carry our labels and that the ledger does not know. They stay:
    /// somebody's disk may be the only copy.
    pub async fn report_orphans(&self) {
        let Ok(found) = self.shared.backend.list().await else {
            return;
        };
        for (id, _) in found {
            if !self.lock().contains_key(&id) {
                tracing::warn!(task_id = %id, "a container of this node is in no ledger; it is left alone");
            }
        }
    }

    /// Waits for drivers to end their step after shutdown was asked.
    pub async fn finish(&self, limit: Duration) {
        self.tracker.close();
        let _ = tokio::time::timeout(limit, self.tracker.wait()).await;
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

    fn drive(&self, drivers: &mut HashMap<TaskId, Handle>, record: Record) {
        let id = record.order.task_id;
        let (orders, receiver) = watch::channel(record.order.clone());
        let nudges = Arc::new(Notify::new());
        let driver = Driver::new(Arc::clone(&self.shared), record, receiver, Arc::clone(&nudges));
        self.tracker.spawn(driver.run());
        drivers.insert(id, Handle { orders, nudges });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Handle>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
