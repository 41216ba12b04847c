//! Restarts an instance's driver after a panic, from the ledger.
//!
//! ```text
//!  record --> driver --gone--> end
//!    ^           |--panic--> reported as blocked, a pause, the ledger is read again --+
//!    +--------------------------------------------------------------------------------+
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use kohakuriver_model::{FailureCode, Observation, Observed};
use kohakuriver_runner_link::backoff::Backoff;
use kohakuriver_runner_link::protocol::Order;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::clock;
use crate::driver::{Command, Driver, Shared};
use crate::ledger::Record;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A driver that ran this long is well again.
const STABLE: Duration = Duration::from_secs(300);

/// The state that outlives the drivers of one instance.
pub struct Keeper {
    pub shared: Arc<Shared>,
    pub orders: watch::Receiver<Order>,
    pub commands: mpsc::Receiver<Command>,
    pub nudges: Arc<Notify>,
}

impl Keeper {
    /// Runs until the instance is gone or the runner ends.
    pub async fn run(mut self, mut record: Record) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let (shared, orders) = (Arc::clone(&self.shared), self.orders.clone());
            let began = Instant::now();
            let driver = Driver::new(shared, record.clone(), orders, Arc::clone(&self.nudges));
            // Its state is on disk and is read again; what it shares is behind locks.
            let ended = AssertUnwindSafe(driver.run(&mut self.commands)).catch_unwind().await;
            let Err(panic) = ended else { return };
            let text = panic.downcast_ref::<&str>().copied();
            let error = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            let id = record.order.task_id;
            tracing::error!(task.id = %id, error, "the driver of an instance panicked; starting another");
            self.report();
            if began.elapsed() >= STABLE {
                backoff.reset();
            }
            tokio::select! {
                () = self.shared.shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next(clock::jitter())) => {}
            }
            record = self.reload(record);
        }
    }

    /// Says what is in the way. Whether the instance runs is not known until the next driver looks.
    fn report(&self) {
        let order = self.orders.borrow().clone();
        let state = Observed::Blocked {
            code: FailureCode::Internal,
            message: "the runner failed while it worked on this, and tries again".to_owned(),
            hint: Some("the node's owner finds the cause in the runner's log".to_owned()),
        };
        let known = self.shared.board.get(order.task_id);
        // What has reached its order keeps its last report.
        if known.is_none_or(|seen| seen.generation < order.intent.generation) {
            let observation = Observation {
                generation: order.intent.generation,
                state,
                ssh_host_key: None,
                warning: None,
                address: None,
            };
            self.shared.board.publish(order.task_id, observation);
        }
    }

    /// How far the driver came, from the ledger.
    fn reload(&self, before: Record) -> Record {
        let id = before.order.task_id;
        match self.shared.ledger.load(id) {
            Ok(Some(record)) => record,
            // It was never written: nothing was begun.
            Ok(None) => before,
            Err(error) => {
                tracing::error!(task.id = %id, %error, "cannot read the instance's record");
                let _ = self.shared.ledger.set_aside(id);
                Record::rebuilt(self.orders.borrow().clone(), clock::now_ms())
            }
        }
    }
}
