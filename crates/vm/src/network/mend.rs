//! What somebody did to the devices of machines that run, undone.
//!
//! ```text
//!  bridge gone, TAP off the bridge or down --repair, connect--> as it was
//!  TAP gone: QEMU has a descriptor that leads nowhere --made again, descriptor bound--> as it was
//! ```

use std::net::Ipv4Addr;

use kohakuriver_model::InstanceId;

use super::kernel::{Device, Guest, Seen};
use super::tap::QemuEnd;
use super::{Network, NetworkError, tap_name, tap_owner};
use crate::launch::Process;

/// A machine that runs, and what belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    pub id: InstanceId,
    pub address: Ipv4Addr,
    /// QEMU's user.
    pub uid: u32,
    pub qemu: Process,
}

impl Network {
    /// A change of this device may have cut a machine off.
    pub fn concerns(&self, device: &str) -> bool {
        device == self.config().bridge.as_str() || tap_owner(device).is_some()
    }

    /// Those of them whose device is not what it should be.
    ///
    /// # Errors
    /// The kernel's devices cannot be listed.
    pub async fn cut_off(&self, machines: &[Plugged]) -> Result<Vec<Plugged>, NetworkError> {
        let seen = self.see().await?;
        let is_plugged_in = |machine: &Plugged| {
            let tap = tap_name(machine.id);
            // It has a carrier while somebody has its other end, but the kernel may be late in
            // saying so.
            let device = seen.taps.iter().find(|device| device.name == tap);
            self.is_whole(&seen, &tap)
                && (device.is_some_and(Device::has_carrier)
                    || QemuEnd::of(machine.qemu).is_ok_and(|end| end.is_bound()))
        };
        Ok(machines.iter().filter(|machine| !is_plugged_in(machine)).copied().collect())
    }

    /// Puts a running machine's device back to where it was.
    ///
    /// # Errors
    /// It is still cut off.
    pub async fn mend(&self, machine: Plugged) -> Result<(), NetworkError> {
        let Plugged { id, address, uid, qemu } = machine;
        let end = QemuEnd::of(qemu).map_err(|source| NetworkError::NoEnd { id, source })?;
        let tap = tap_name(id);
        if !end.is_bound() {
            self.attach(id, address, uid).await?;
            if !qemu.is_alive() {
                // Who cleared away behind it may have done so before there was this.
                return self.detach(id).await;
            }
            return end.bind(&tap).map_err(|source| NetworkError::NoEnd { id, source });
        }
        self.repair().await?;
        if self.is_whole(&self.see().await?, &tap) {
            return Ok(());
        }
        self.reconnect(&Guest { id, tap, address }).await
    }

    fn is_whole(&self, seen: &Seen, tap: &str) -> bool {
        let bridge = &self.config().bridge;
        let device = seen.taps.iter().find(|device| device.name == tap);
        seen.bridge.as_ref().is_some_and(Device::is_up)
            && device.is_some_and(|device| {
                device.is_up() && device.master.as_deref() == Some(bridge.as_str())
            })
    }
}
