//! What is done once on request, between steps: the same writer does it, so no snapshot meets a
//! removal half-way.

use kohakuriver_model::InstanceId;
use kohakuriver_model::bounds::MAX_SNAPSHOTS;
use kohakuriver_runner_link::protocol::{InstanceCommand, InstanceReply, Order};
use tokio::sync::oneshot;

use super::{Driver, StepError};
use crate::backend::{Backend, BackendError, SnapshotWish};

/// A question, and where its answer goes. Nobody may be waiting any more.
#[derive(Debug)]
pub struct Request {
    pub command: InstanceCommand,
    pub reply: oneshot::Sender<InstanceReply>,
}

impl Driver {
    pub(super) async fn serve(&mut self, request: Request) {
        let answer = self.answer(request.command).await.unwrap_or_else(|error| failed(&error));
        let _ = request.reply.send(answer);
    }

    async fn answer(&mut self, command: InstanceCommand) -> Result<InstanceReply, BackendError> {
        let backend = self.backend();
        match command {
            InstanceCommand::ListSnapshots { before } => list(&*backend, self.id, before).await,
            InstanceCommand::CreateSnapshot { name, message } => {
                let message = message.unwrap_or_default();
                let keep = self.record.order.spec.snapshots.keep;
                let known = backend.list_snapshots(self.id).await?;
                let kept = known.len();
                if kept >= MAX_SNAPSHOTS {
                    let reason = format!("it has {kept} snapshots already: delete some first");
                    return Err(BackendError::Refused { by: "the node", act: "snapshot", reason });
                }
                if let Some(name) = &name
                    && known.iter().any(|snapshot| snapshot.name.as_ref() == Some(name))
                {
                    return Err(BackendError::SnapshotNameTaken { name: name.clone() });
                }
                let wish = SnapshotWish { name, message };
                let snapshot = backend.create_snapshot(self.id, &wish, keep).await?;
                tracing::info!(task_id = %self.id, tag = snapshot.tag, "snapshot made");
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

    /// A stop is not held up by a snapshot that cannot be made: it is said instead.
    pub(super) async fn snapshot_on_stop(
        &mut self,
        started: Option<String>,
    ) -> Result<(), StepError> {
        let wish = SnapshotWish { name: None, message: "made at stop".to_owned() };
        let keep = self.record.order.spec.snapshots.keep;
        let made = self.backend().create_snapshot(self.id, &wish, keep).await;
        let trouble = match made {
            Ok(_) => None,
            Err(error) if error.is_engine_away() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(task_id = %self.id, %error, "no snapshot at stop");
                Some(format!("no snapshot was made at this stop: {error}"))
            }
        };
        self.write(|record| record.stop_snapshotted(started, trouble))
    }
}

/// Needs no turn: it changes nothing.
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
