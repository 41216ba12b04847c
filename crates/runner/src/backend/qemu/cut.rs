//! Machines that were cut off from their network: noticed when the kernel tells of it, and mended.

use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::TaskId;
use kohakuriver_vm::network::DeviceChanges;

use super::QemuBackend;
use super::live::Live;
use crate::backend::Change;

/// What belongs together comes together, and whoever undoes what we do is not followed faster.
const GATHER: Duration = Duration::from_millis(200);
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl QemuBackend {
    /// Keeps running machines plugged in until the runner lets go of them.
    pub(super) fn keep_plugged(&self) {
        if !self.shared.host.net.has_bridge() {
            return;
        }
        let changes = match DeviceChanges::subscribe() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "changes of network devices are not heard of");
                return;
            }
        };
        let (this, left) = (self.clone(), self.shared.left.clone());
        tokio::spawn(left.run_until_cancelled_owned(async move {
            if let Err(error) = this.watch_devices(changes).await {
                tracing::warn!(%error, "changes of network devices are not heard of any more");
            }
        }));
    }

    async fn watch_devices(&self, mut changes: DeviceChanges) -> std::io::Result<()> {
        loop {
            // At first as well: nobody listened while there was no runner.
            let whole = self.plug_in_again().await;
            let changed = async {
                loop {
                    let names = changes.next().await?;
                    let net = &self.shared.host.net;
                    if names.is_none_or(|names| names.iter().any(|name| net.concerns(name))) {
                        return Ok::<_, std::io::Error>(());
                    }
                }
            };
            if whole {
                changed.await?;
            } else if let Ok(changed) = tokio::time::timeout(TRY_AGAIN, changed).await {
                changed?;
                tokio::time::sleep(TRY_AGAIN).await;
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Looks at every machine that runs. `false`: one is cut off still.
    async fn plug_in_again(&self) -> bool {
        let all: Vec<(TaskId, Arc<Live>)> =
            self.lock().iter().map(|(id, live)| (*id, Arc::clone(live))).collect();
        let mut whole = true;
        for (id, live) in all {
            let Ok(Some(machine)) = self.dir(id).machine() else { continue };
            let net = &self.shared.host.net;
            let cut = match net.mend(id, &machine, live.process()).await {
                _ if !live.process().is_alive() => continue,
                Ok(mended) => {
                    if mended {
                        tracing::warn!(task_id = %id, "a running machine's network device was changed or removed by somebody; it is put right");
                    }
                    None
                }
                Err(error) => {
                    tracing::error!(task_id = %id, %error, "a running machine is cut off");
                    Some(error.to_string())
                }
            };
            whole &= cut.is_none();
            if live.set_cut(cut) {
                let _ = self.shared.events.send(Change::Instance(id));
            }
        }
        whole
    }
}
