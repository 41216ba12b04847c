//! The steps that bring an instance up: image, container, start, the agent's first answer.

use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::{FailureCode, Observed};
use tokio::time::Instant;

use super::{Driver, StepError};
use crate::agent_files;
use crate::agent_stream;
use crate::backend::BackendError;
use crate::clock;
use crate::ledger::Record;

/// The least time to wait for an agent, also of a start that an earlier runner waited for.
const LEAST_WAIT: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) async fn create(&mut self) -> Result<(), StepError> {
        self.provisioning("preparing");
        agent_files::write_instance_files(&self.shared.layout, &self.record.order)?;
        self.host_key = agent_files::public_host_key(&self.shared.layout, self.id);
        let outcome = self.prepare_and_create().await;
        match outcome {
            Err(StepError::Backend(error)) if !error.is_engine_away() || !self.record.attempted => {
                tracing::warn!(task.id = %self.id, error = %error, "create failed");
                if self.record.attempted {
                    // What a failed create left must not be taken for the instance's disk.
                    self.backend().remove(self.id).await?;
                }
                self.record_failure(error.code(), error.to_string(), error.hint(), true)?;
                Ok(())
            }
            other => other,
        }
    }

    async fn prepare_and_create(&mut self) -> Result<(), StepError> {
        let (shared, backend) = (Arc::clone(&self.shared), self.backend());
        let order = self.record.order.clone();
        let publisher = self.publisher();
        let progress =
            |step: String, percent| publisher.publish(Observed::Provisioning { step, percent });
        backend.permits(&order.spec)?;
        let prepare = backend.prepare(&order, &progress);
        let image = self.unless_superseded(prepare).await??;
        self.provisioning("creating");
        let _turn = shared.starts.acquire().await;
        self.write(|record| record.attempted = true)?;
        backend.create(&order, &image).await?;
        Ok(())
    }

    /// Gives up the old disk, but only once the new one is known to be there.
    pub(super) async fn replace(&mut self) -> Result<(), StepError> {
        self.provisioning("looking for the snapshot");
        let backend = self.backend();
        let order = self.record.order.clone();
        let prepare = backend.prepare(&order, &|_, _| {});
        let prepared = self.unless_superseded(prepare).await?;
        // The host asks before it orders; one that did not must not be the end of anything.
        let outside = backend.outside(self.id).await?;
        let prepared = match prepared {
            Ok(_) if !outside.is_empty() => Err(BackendError::OutsideDisk { paths: outside }),
            other => other,
        };
        match prepared {
            Ok(_) => Ok(backend.remove(self.id).await?),
            Err(error) if error.is_engine_away() => Err(error.into()),
            Err(error) => self.record_failure(error.code(), error.to_string(), error.hint(), false),
        }
    }

    pub(super) async fn start(
        &mut self,
        before: Option<String>,
        epoch: String,
    ) -> Result<(), StepError> {
        self.provisioning("starting");
        agent_files::write_instance_files(&self.shared.layout, &self.record.order)?;
        self.write(|record| record.intend_start(epoch, before))?;
        let (shared, backend) = (Arc::clone(&self.shared), self.backend());
        let _turn = shared.starts.acquire().await;
        let started = match backend.permits(&self.record.order.spec) {
            Ok(()) => backend.start(self.id).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => self.write(Record::confirm_start),
            Err(error) if error.is_engine_away() => Err(error.into()),
            Err(error) => {
                tracing::warn!(task.id = %self.id, error = %error, "start failed");
                self.record_failure(error.code(), error.to_string(), error.hint(), false)
            }
        }
    }

    pub(super) async fn await_agent(&mut self, started_at_ms: i64) -> Result<(), StepError> {
        self.provisioning("starting");
        let backend = self.backend();
        let limit = backend.boot_limit();
        // From its start, not from when this order came; a clock that was moved proves nothing.
        let since = u64::try_from(clock::now_ms() - started_at_ms).map(Duration::from_millis);
        let left =
            limit.saturating_sub(since.ok().filter(|since| *since < limit).unwrap_or_default());
        let deadline = Instant::now() + left.max(LEAST_WAIT);
        let id = self.id;
        let answered = async {
            let mut pause = Duration::from_millis(4);
            let mut looked = Instant::now();
            while Instant::now() < deadline {
                match backend.agent(id) {
                    Some(agent) if agent_stream::ping(&agent).await.is_err() => {}
                    Some(_) | None => return Ok(true),
                }
                // Now and then: does it still run at all?
                if looked.elapsed() > Duration::from_millis(250) {
                    looked = Instant::now();
                    let found = backend.inspect(id).await?;
                    if !found.is_some_and(|found| found.is_running()) {
                        return Ok(false);
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(Duration::from_millis(100));
            }
            Err(BackendError::Slow { act: "the agent's start", seconds: limit.as_secs() })
        };
        let contained = async {
            let outcome = backend.contain(id).await;
            // What has ended needs no walls, and is told below.
            let runs = outcome.is_err()
                && backend.inspect(id).await?.is_some_and(|found| found.is_running());
            if runs { outcome } else { Ok(()) }
        };
        let up = async { tokio::try_join!(answered, contained) };
        let answered = self.unless_superseded(up).await?.map(|(answered, ())| answered);
        match answered {
            Ok(true) => {
                self.write(Record::agent_answered)?;
                tracing::info!(task.id = %self.id, started_at_ms, "running");
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(BackendError::Slow { .. }) => {
                let log = self.backend().log_tail(self.id).await;
                let seconds = limit.as_secs();
                let message =
                    format!("the agent did not answer within {seconds} s{}", last_output(&log));
                self.record_failure(FailureCode::AgentSilent, message, None, false)
            }
            Err(error @ (BackendError::NotContained { .. } | BackendError::NotAllowed { .. })) => {
                tracing::warn!(task.id = %self.id, error = %error, "start failed");
                self.record_failure(error.code(), error.to_string(), error.hint(), false)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn record_early_end(
        &mut self,
        exit_code: Option<i64>,
    ) -> Result<(), StepError> {
        let log = self.backend().log_tail(self.id).await;
        let code = exit_code.map_or_else(String::new, |code| format!(" with exit code {code}"));
        let message =
            format!("the instance ended right after its start{code}{}", last_output(&log));
        self.record_failure(FailureCode::StartRefused, message, None, false)
    }

    /// Waits for `work`, unless a newer order comes or the runner ends.
    pub(super) async fn unless_superseded<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, StepError> {
        let mut orders = self.orders.clone();
        let newest = self.record.order.intent.generation;
        let newer = orders.wait_for(|order| order.intent.generation > newest);
        tokio::select! {
            outcome = work => Ok(outcome),
            _ = newer => Err(StepError::Superseded),
            () = self.shared.shutdown.cancelled() => Err(StepError::Superseded),
        }
    }
}

fn last_output(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its last output: {log}") }
}
