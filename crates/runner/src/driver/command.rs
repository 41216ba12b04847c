//! Executes snapshot commands between steps: in the instance's single writer, so that no snapshot
//! races a removal.

use kohakuriver_model::InstanceId;
use kohakuriver_model::bounds::MAX_SNAPSHOTS;
use kohakuriver_runner_link::protocol::{InstanceCommand, InstanceReply, Order};
use tokio::sync::oneshot;

use super::{Driver, StepError};
use crate::backend::{Backend, BackendError, SnapshotSpec};

/// A command and the channel of its reply, whose caller may have timed out.
#[derive(Debug)]
pub struct Command {
    pub command: InstanceCommand,
    pub reply: oneshot::Sender<InstanceReply>,
}

impl Driver {
    pub(super) async fn serve(&mut self, command: Command) {
        let answer = self.answer(command.command).await.unwrap_or_else(|error| failed(&error));
        let _ = command.reply.send(answer);
    }

    async fn answer(&mut self, command: InstanceCommand) -> Result<InstanceReply, BackendError> {
        let backend = self.backend();
        match command {
            InstanceCommand::ListSnapshots { before } => list(&*backend, self.id, before).await,
            InstanceCommand::CreateSnapshot { name, message } => {
                let message = message.unwrap_or_default();
                let keep = self.record.order.spec.snapshots.keep;
                let known = backend.list_snapshots(self.id).await?;
                let count = known.len();
                if count >= MAX_SNAPSHOTS {
                    let reason =
                        format!("it already has {count} snapshots, the limit: delete some first");
                    return Err(BackendError::Refused { by: "the node", act: "snapshot", reason });
                }
                if let Some(name) = &name
                    && known.iter().any(|snapshot| snapshot.name.as_ref() == Some(name))
                {
                    return Err(BackendError::SnapshotNameTaken { name: name.clone() });
                }
                let spec = SnapshotSpec { name, message };
                let snapshot = backend.create_snapshot(self.id, &spec, keep).await?;
                tracing::info!(task.id = %self.id, tag = snapshot.tag, "snapshot made");
                Ok(InstanceReply::Created { snapshot })
            }
            InstanceCommand::DeleteSnapshot { tag } => {
                if self.awaits_restore(tag) {
                    return Err(BackendError::SnapshotInUse { tag });
                }
                backend.delete_snapshot(self.id, tag).await?;
                Ok(InstanceReply::Deleted)
            }
        }
    }

    /// The next start makes the disk from this snapshot: a restore was superseded by a stop or a kill.
    fn awaits_restore(&self, tag: u64) -> bool {
        let Order { intent, spec, .. } = &self.record.order;
        spec.snapshot.is_some_and(|from| from.task_id == self.id && from.tag == tag)
            && self.record.disk.is_none_or(|disk| disk < intent.disk_generation)
    }

    /// Creates the snapshot of a stop. A failure becomes a warning and does not delay the stop.
    pub(super) async fn snapshot_on_stop(
        &mut self,
        started: Option<String>,
    ) -> Result<(), StepError> {
        let spec = SnapshotSpec { name: None, message: "made at stop".to_owned() };
        let keep = self.record.order.spec.snapshots.keep;
        let made = self.backend().create_snapshot(self.id, &spec, keep).await;
        let trouble = match made {
            Ok(_) => None,
            Err(error) if error.is_engine_away() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(task.id = %self.id, %error, "cannot create a snapshot at stop");
                Some(format!("no snapshot was created at this stop: {error}"))
            }
        };
        self.write(|record| record.stop_snapshotted(started, trouble))
    }
}

/// Lists snapshots. Changes nothing, so it does not wait for the driver.
pub async fn list(
    backend: &dyn Backend,
    id: InstanceId,
    before: Option<u64>,
) -> Result<InstanceReply, BackendError> {
    let outside = backend.outside(id).await?;
    Ok(InstanceReply::page(backend.list_snapshots(id).await?, before).with_outside(outside))
}

pub fn failed(error: &BackendError) -> InstanceReply {
    InstanceReply::Failed { code: error.code(), message: error.to_string(), hint: error.hint() }
        .bounded()
}
