//! What somebody did to the devices of machines that run, undone.
//!
//! ```text
//!  bridge gone, TAP off the bridge or down --repair, connect--> as it was
//!  TAP gone: QEMU has a descriptor that leads nowhere --made again, descriptor bound--> as it was
//! ```

use std::net::Ipv4Addr;

use kohakuriver_model::TaskId;

use super::kernel::{Guest, Seen};
use super::tap::QemuEnd;
use super::{Network, NetworkError, tap_name, tap_owner};
use crate::launch::Process;

/// A machine that runs, and what belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    pub id: TaskId,
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

    /// Puts a running machine's device back to where it was. `true`: something was wrong with it.
    ///
    /// # Errors
    /// It is still cut off.
    pub async fn mend(&self, machine: Plugged) -> Result<bool, NetworkError> {
        let Plugged { id, address, uid, qemu } = machine;
        let end = QemuEnd::of(qemu).map_err(|source| NetworkError::NoEnd { id, source })?;
        let tap = tap_name(id);
        let seen = self.see().await?;
        if !end.is_bound() {
            self.attach(id, address, uid).await?;
            if !qemu.is_alive() {
                // Who cleared away behind it may have done so before there was this.
                self.detach(id).await?;
                return Ok(false);
            }
            let bound = end.bind(&tap);
            bound.map_err(|source| NetworkError::NoEnd { id, source })?;
            return Ok(true);
        }
        if self.is_whole(&seen, &tap) {
            return Ok(false);
        }
        self.repair().await?;
        let seen = self.see().await?;
        if !self.is_whole(&seen, &tap) {
            self.reconnect(&Guest { id, tap, address }).await?;
        }
        Ok(true)
    }

    fn is_whole(&self, seen: &Seen, tap: &str) -> bool {
        let bridge = &self.config().bridge;
        let device = seen.taps.iter().find(|device| device.name == tap);
        seen.bridge.as_ref().is_some_and(super::kernel::Device::is_up)
            && device.is_some_and(|device| {
                device.is_up() && device.master.as_deref() == Some(bridge.as_str())
            })
    }
}
