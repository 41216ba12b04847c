//! Repairs VMs that are detached from their network, when the kernel reports a change of a device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::InstanceId;
use kohakuriver_vm::network::{DeviceChanges, Plugged};

use super::QemuBackend;
use super::live::Live;
use crate::backend::Change;

/// Debounce: related changes arrive within this window, and an external process that undoes repairs is not chased
/// faster.
const GATHER: Duration = Duration::from_millis(200);
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl QemuBackend {
    /// Keeps running VMs attached to the network until the runner releases them.
    pub(super) fn keep_plugged(&self) {
        if !self.shared.host.net.has_bridge() {
            return;
        }
        let changes = match DeviceChanges::subscribe() {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "cannot watch network devices");
                return;
            }
        };
        let (this, left) = (self.clone(), self.shared.left.clone());
        tokio::spawn(left.run_until_cancelled_owned(async move {
            if let Err(error) = this.watch_devices(changes).await {
                tracing::warn!(%error, "stopped watching network devices");
            }
        }));
    }

    async fn watch_devices(&self, mut changes: DeviceChanges) -> std::io::Result<()> {
        loop {
            // At first as well: changes were missed while there was no runner.
            let whole = self.reattach_all().await;
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

    /// Reattaches every running VM. Returns `false` if one is still detached.
    async fn reattach_all(&self) -> bool {
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
        let detached = net.detached(&machines).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot inspect VMs' network devices");
            Vec::new()
        });
        for machine in detached.into_iter().filter(|machine| machine.qemu.is_alive()) {
            let id = machine.id;
            match net.repair(machine).await {
                // The VM is gone, and so are its devices.
                _ if !machine.qemu.is_alive() => {}
                Ok(()) => {
                    tracing::warn!(task.id = %id, "a running VM's network device was removed or changed; repaired");
                }
                Err(error) => {
                    tracing::error!(task.id = %id, %error, "a running VM is detached from its network");
                    reasons.insert(id, error.to_string());
                }
            }
        }
        for (id, live) in &all {
            if live.set_detached(reasons.get(id).cloned()) {
                let _ = self.shared.events.send(Change::Instance(*id));
            }
        }
        reasons.is_empty()
    }
}
