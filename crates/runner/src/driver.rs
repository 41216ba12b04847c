//! Drives one instance as its single writer.
//!
//! ```text
//!  inspect (ledger, backend) --plan--> step --done--> inspect again
//!                               |--rest--> publish, wait for: order | backend event | timer
//!  engine away: publish nothing, wait, inspect again   newer order while waiting: abandon, inspect
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::{Desired, FailureCode, InstanceId, Observation, Observed};
use kohakuriver_runner_link::backoff::Backoff;
use kohakuriver_runner_link::protocol::Order;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agent_files;
use crate::backend::{Backend, BackendError, BackendState, Backends, Lifecycle};
use crate::clock;
use crate::layout::Layout;
use crate::ledger::{Ledger, LedgerError, Record};
use crate::observation_board::ObservationBoard;
use crate::plan::{Failure, PlanInput, Step, plan};

mod bring_up;
pub mod command;

pub use command::Command;

/// Steps that follow each other without rest, before something must be wrong.
const MOST_STEPS: u32 = 20;

/// Creates and starts at once on one node. Measured on two cores: with eight the engine is busy
/// all the time, and each start is still far within the limit its agent has to answer.
pub const STARTS_AT_ONCE: usize = 8;

/// The state shared by all drivers.
pub struct Shared {
    pub backends: Backends,
    pub ledger: Ledger,
    pub layout: Layout,
    pub board: Arc<ObservationBoard>,
    /// Permits to create and start instances. More at once would only make each slower.
    pub starts: Semaphore,
    pub shutdown: CancellationToken,
}

pub struct Driver {
    shared: Arc<Shared>,
    id: InstanceId,
    orders: watch::Receiver<Order>,
    nudges: Arc<Notify>,
    record: Record,
    host_key: Option<String>,
    /// The agent's settings are those of the order.
    settings_written: bool,
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("the backend failed")]
    Backend(#[from] BackendError),
    #[error("cannot write the ledger")]
    Ledger(#[from] LedgerError),
    #[error("cannot write the instance's files")]
    Files(#[from] std::io::Error),
    #[error("superseded by a newer order")]
    Superseded,
}

impl StepError {
    /// Returns the failure's code, message and hint.
    fn explain(&self) -> (FailureCode, String, Option<String>) {
        let disk_full = || {
            let hint = "free some space on the node's data directory".to_owned();
            (FailureCode::DiskFull, "the node's disk is full".to_owned(), Some(hint))
        };
        match self {
            Self::Backend(error) => (error.code(), error.to_string(), error.hint()),
            Self::Ledger(error) if error.is_disk_full() => disk_full(),
            Self::Files(error) if error.kind() == std::io::ErrorKind::StorageFull => disk_full(),
            Self::Ledger(_) | Self::Files(_) | Self::Superseded => {
                let hint = "the node's owner finds the cause in the runner's log".to_owned();
                (FailureCode::Internal, format!("on the node, {self}"), Some(hint))
            }
        }
    }
}

enum Next {
    Again,
    Wait,
    Gone,
}

impl Driver {
    pub fn new(
        shared: Arc<Shared>,
        record: Record,
        orders: watch::Receiver<Order>,
        nudges: Arc<Notify>,
    ) -> Self {
        let id = record.order.task_id;
        let host_key = agent_files::public_host_key(&shared.layout, id);
        let settings_written = false;
        Self { shared, id, orders, nudges, record, host_key, settings_written }
    }

    /// Runs until the instance is gone or the runner ends. Borrows the queue of commands, so that
    /// waiting ones outlive a panic.
    pub async fn run(mut self, commands: &mut mpsc::Receiver<Command>) {
        let mut retry = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut steps = 0;
        let shutdown = self.shared.shutdown.clone();
        while !shutdown.is_cancelled() {
            let wait = match self.advance().await {
                Ok(Next::Gone) => return,
                Ok(Next::Again) if steps < MOST_STEPS => {
                    steps += 1;
                    continue;
                }
                Ok(Next::Again) => {
                    tracing::warn!(task.id = %self.id, "the instance does not converge");
                    Some(retry.next(clock::jitter()))
                }
                Ok(Next::Wait) => {
                    retry.reset();
                    None
                }
                Err(StepError::Superseded) => continue,
                Err(error) => {
                    self.report_trouble(&error);
                    Some(retry.next(clock::jitter()))
                }
            };
            steps = 0;
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                // The supervisor holds the sender for as long as this task runs.
                _ = self.orders.changed() => {}
                Some(command) = commands.recv() => self.serve(command).await,
                () = self.nudges.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Inspects the instance and performs one step.
    async fn advance(&mut self) -> Result<Next, StepError> {
        self.take_order().await?;
        let found = match self.backend().inspect(self.id).await {
            Ok(found) => found,
            Err(error) if error.is_engine_away() && !self.record.attempted => {
                return self.without_engine(error);
            }
            Err(error) if self.must_delete_uninspected(&error) => {
                tracing::warn!(task.id = %self.id, %error, "removing an instance that cannot be inspected");
                self.backend().remove(self.id).await?;
                return self.forget().await;
            }
            Err(error) => return Err(error.into()),
        };
        if self.record.unproven {
            let epoch = found.as_ref().map(|found| found.epoch.clone());
            self.write(|record| record.prove(epoch))?;
        }
        let step = plan(&self.view(), found.as_ref());
        tracing::debug!(task.id = %self.id, ?step, "next step");
        match step {
            Step::Create => self.create().await?,
            Step::Replace => self.replace().await?,
            Step::Start { before, epoch } => self.start(before, epoch).await?,
            Step::ConfirmStart => self.write(Record::confirm_start)?,
            Step::AwaitAgent { started_at_ms } => self.await_agent(started_at_ms).await?,
            Step::RecordEarlyEnd { exit_code } => self.record_early_end(exit_code).await?,
            Step::RecordOom => {
                tracing::warn!(task.id = %self.id, "out of memory");
                self.write(Record::ran_out_of_memory)?;
            }
            Step::SettleEnd => {
                let started = found.and_then(|found| found.started);
                self.write(|record| record.exit_is_final = started)?;
            }
            Step::Pause => self.backend().pause(self.id).await?,
            Step::Resume => self.backend().resume(self.id).await?,
            Step::Resize => self.resize(found.as_ref()).await?,
            Step::Stop => {
                if self.record.order.intent.desired.is_up() {
                    self.provisioning("stopping");
                }
                let backend = self.backend();
                let stop = backend.stop(self.id);
                // A newer order may kill it meanwhile.
                self.unless_superseded(stop).await??;
            }
            Step::Kill => self.backend().kill(self.id).await?,
            Step::SnapshotOnStop => {
                self.snapshot_on_stop(found.and_then(|found| found.started)).await?;
            }
            Step::Remove => self.backend().remove(self.id).await?,
            Step::Forget => return self.forget().await,
            Step::Settle(seen) => {
                if found.is_none() && self.record.attempted && self.record.failure.is_some() {
                    self.write(Record::nothing_created)?;
                }
                self.publish(seen);
                self.backend().tidy(self.id).await?;
                return Ok(Next::Wait);
            }
        }
        Ok(Next::Again)
    }

    /// Whether to delete the instance without inspecting it: its description on the node is damaged,
    /// and none of it is needed.
    fn must_delete_uninspected(&self, error: &BackendError) -> bool {
        self.record.order.intent.desired == Desired::Deleted && !error.is_engine_away()
    }

    async fn forget(&mut self) -> Result<Next, StepError> {
        self.backend().delete_all_snapshots(self.id).await?;
        // Last: afterwards no record says that anything of it could be left.
        self.backend().tidy(self.id).await?;
        self.shared.ledger.forget(self.id)?;
        self.host_key = None;
        self.publish(Observed::Absent);
        tracing::info!(task.id = %self.id, "deleted");
        Ok(Next::Gone)
    }

    async fn take_order(&mut self) -> Result<(), StepError> {
        let order = self.orders.borrow_and_update().clone();
        let mut newer = self.record.clone();
        if newer.accept(&order, clock::now_ms()) {
            // What was never begun needs no record to be forgotten, also where the disk is full.
            if newer.attempted || order.intent.desired != Desired::Deleted {
                self.shared.ledger.save(&newer)?;
            }
            tracing::info!(
                task.id = %self.id,
                desired = ?order.intent.desired,
                generation = order.intent.generation,
                "new order"
            );
            self.record = newer;
            self.settings_written = false;
        }
        if !self.settings_written && self.record.attempted {
            // Keys count from the next login on; a runner that died before this does it when it is back.
            self.backend().refresh_settings(&self.record.order).await?;
            self.settings_written = true;
        }
        Ok(())
    }

    /// The engine cannot be asked, and never was asked to make anything: that much is known.
    fn without_engine(&mut self, error: BackendError) -> Result<Next, StepError> {
        match self.record.order.intent.desired {
            Desired::Deleted => {
                self.shared.ledger.forget(self.id)?;
                self.publish(Observed::Absent);
                Ok(Next::Gone)
            }
            Desired::Running | Desired::Paused => {
                self.record_failure(error.code(), error.to_string(), error.hint(), true)?;
                self.rest_without_engine()
            }
            Desired::Stopped | Desired::Killed => self.rest_without_engine(),
        }
    }

    fn rest_without_engine(&mut self) -> Result<Next, StepError> {
        if let Step::Settle(seen) = plan(&self.view(), None) {
            self.publish(seen);
        }
        Ok(Next::Wait)
    }

    /// Returns the instance's backend, which never changes.
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(self.shared.backends.of(self.record.order.spec.backend()))
    }

    fn view(&self) -> PlanInput<'_> {
        let wanted = self.backend().limits(&self.record.order.spec);
        self.record.view(wanted, clock::now_ms())
    }

    /// New limits. One that cannot have them while it runs keeps its old ones until its next
    /// start, and says so.
    async fn resize(&mut self, found: Option<&BackendState>) -> Result<(), StepError> {
        let outcome = self.backend().resize(self.id, &self.record.order.spec).await;
        let up = found.is_some_and(|found| {
            matches!(found.life, Lifecycle::Running { .. } | Lifecycle::Paused { .. })
        });
        match outcome {
            Err(error @ BackendError::Refused { .. }) if up => {
                tracing::warn!(task.id = %self.id, %error, "the limits apply at the next start");
                let why = format!("its new limits apply after a restart: {error}");
                self.write(|record| record.refuse_resize(why))
            }
            other => other.map_err(StepError::from),
        }
    }

    fn record_failure(
        &mut self,
        code: FailureCode,
        message: String,
        hint: Option<String>,
        at_create: bool,
    ) -> Result<(), StepError> {
        let start_generation = self.record.order.intent.start_generation;
        self.write(|record| {
            record.failure = Some(Failure { start_generation, code, message, hint, at_create });
        })
    }

    /// Changes the record on disk, then in memory.
    fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), StepError> {
        let mut record = self.record.clone();
        change(&mut record);
        self.shared.ledger.save(&record)?;
        self.record = record;
        Ok(())
    }

    /// Says what is in the way of an order. An instance with none keeps its last report: whether
    /// it still runs is not known while its engine is away.
    fn report_trouble(&self, error: &StepError) {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(task.id = %self.id, %error, cause, "will try again");
        let ordered = self.record.order.intent.generation;
        let pending = self.shared.board.get(self.id).is_none_or(|seen| {
            let on_its_way =
                matches!(seen.state, Observed::Provisioning { .. } | Observed::Blocked { .. });
            seen.generation < ordered || on_its_way
        });
        if pending {
            let (code, message, hint) = error.explain();
            self.publish(Observed::Blocked { code, message, hint });
        }
    }

    fn provisioning(&self, step: &str) {
        self.publish(Observed::Provisioning { step: step.to_owned(), percent: None });
    }

    fn publish(&self, state: Observed) {
        self.publisher().publish(state);
    }

    fn publisher(&self) -> Publisher {
        let remarks = self.backend().remarks(self.id);
        Publisher {
            board: Arc::clone(&self.shared.board),
            id: self.id,
            generation: self.record.order.intent.generation,
            host_key: self.host_key.clone(),
            warning: self.record.current_warning().map(ToOwned::to_owned).or(remarks.warning),
            address: remarks.address,
        }
    }
}

struct Publisher {
    board: Arc<ObservationBoard>,
    id: InstanceId,
    generation: u64,
    host_key: Option<String>,
    warning: Option<String>,
    address: Option<IpAddr>,
}

impl Publisher {
    fn publish(&self, state: Observed) {
        let ssh_host_key = self.host_key.clone();
        let warning = self.warning.clone();
        let (generation, address) = (self.generation, self.address);
        let observation = Observation { generation, state, ssh_host_key, warning, address };
        self.board.publish(self.id, observation);
    }
}

#[cfg(test)]
mod tests;
