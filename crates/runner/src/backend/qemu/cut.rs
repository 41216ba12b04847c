//! Machines that were cut off from their network: noticed when the kernel tells of it, and mended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::InstanceId;
use kohakuriver_vm::network::{DeviceChanges, Plugged};

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
        let all: Vec<(InstanceId, Arc<Live>)> =
            self.lock().iter().map(|(id, live)| (*id, Arc::clone(live))).collect();
        let net = &self.shared.host.net;
        let plugged = |(id, live): &(InstanceId, Arc<Live>)| {
            net.plugged(*id, &self.dir(*id).machine().ok()??, live.process())
        };
        let machines: Vec<Plugged> = all.iter().filter_map(plugged).collect();
        if machines.is_empty() {
            return true;
        }
        let mut reasons = BTreeMap::new();
        let cut_off = net.cut_off(&machines).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "machines' network devices cannot be looked at");
            Vec::new()
        });
        for machine in cut_off.into_iter().filter(|machine| machine.qemu.is_alive()) {
            let id = machine.id;
            match net.mend(machine).await {
                // It is gone, and so is what it had.
                _ if !machine.qemu.is_alive() => {}
                Ok(()) => {
                    tracing::warn!(task_id = %id, "somebody removed or changed a running machine's network device; it is put right");
                }
                Err(error) => {
                    tracing::error!(task_id = %id, %error, "a running machine is cut off");
                    reasons.insert(id, error.to_string());
                }
            }
        }
        for (id, live) in &all {
            if live.set_cut(reasons.get(id).cloned()) {
                let _ = self.shared.events.send(Change::Instance(*id));
            }
        }
        reasons.is_empty()
    }
}
