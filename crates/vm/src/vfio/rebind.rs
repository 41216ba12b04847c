//! One function from its driver to vfio-pci and back.
//!
//! ```text
//!   old driver --override, unbind, probe--> vfio-pci --override, unbind, bind--> old driver
//! ```
//!
//! Each way can be taken again from wherever a crash left it: what is done already is seen, and
//! not done twice.

use std::io;
use std::path::{Path, PathBuf};

use super::address::PciAddress;
use super::journal::Held;
use super::kernel::Kernel;
use super::pci::{Roots, VFIO_PCI, linked_name, read_override};

/// Why a function has another driver than it should.
#[derive(Debug, thiserror::Error)]
pub enum RebindError {
    #[error("cannot write {text:?} to {file}")]
    Write { file: PathBuf, text: String, source: io::Error },
    #[error(
        "{address} was offered to the driver {wanted} and is with {}: dmesg says why",
        .found.as_deref().unwrap_or("none")
    )]
    Stayed { address: PciAddress, wanted: String, found: Option<String> },
}

#[derive(Debug)]
pub(super) struct Rebind<'a> {
    pub roots: &'a Roots,
    pub kernel: &'a dyn Kernel,
}

impl Rebind<'_> {
    pub fn to_vfio(&self, address: PciAddress) -> Result<(), RebindError> {
        let device = self.roots.device(address);
        let driver = self.driver_of(address);
        if driver.as_deref() == Some(VFIO_PCI) {
            return Ok(());
        }
        self.write(&device.join("driver_override"), VFIO_PCI)?;
        if let Some(driver) = driver {
            self.unbind(&driver, address)?;
        }
        self.write(&self.roots.sys.join("bus/pci/drivers_probe"), &address.to_string())?;
        self.verify(address, VFIO_PCI)
    }

    pub fn back(&self, held: &Held) -> Result<(), RebindError> {
        let address = held.address;
        let device = self.roots.device(address);
        if !device.exists() || held.driver.as_deref() == Some(VFIO_PCI) {
            // Pulled out; or the administrator's own, and never touched.
            return Ok(());
        }
        let before = held.driver_override.as_deref();
        let ours = read_override(&device).as_deref() == Some(VFIO_PCI);
        if ours && before != Some(VFIO_PCI) {
            // An empty line clears it.
            self.write(&device.join("driver_override"), before.unwrap_or("\n"))?;
        }
        if self.driver_of(address).as_deref() == Some(VFIO_PCI) {
            self.unbind(VFIO_PCI, address)?;
        }
        let Some(driver) = &held.driver else { return Ok(()) };
        if self.driver_of(address).is_some() {
            return Ok(());
        }
        if !self.roots.driver(driver).exists() {
            // Its module was unloaded meanwhile. That it cannot be loaded shows in what follows.
            let _ = self.kernel.load_module(driver);
        }
        if self.driver_of(address).is_none() {
            self.write(&self.roots.driver(driver).join("bind"), &address.to_string())?;
        }
        self.verify(address, driver)
    }

    fn unbind(&self, driver: &str, address: PciAddress) -> Result<(), RebindError> {
        self.write(&self.roots.driver(driver).join("unbind"), &address.to_string())
    }

    fn verify(&self, address: PciAddress, wanted: &str) -> Result<(), RebindError> {
        let found = self.driver_of(address);
        if found.as_deref() == Some(wanted) {
            return Ok(());
        }
        Err(RebindError::Stayed { address, wanted: wanted.to_owned(), found })
    }

    fn driver_of(&self, address: PciAddress) -> Option<String> {
        linked_name(&self.roots.device(address).join("driver"))
    }

    fn write(&self, file: &Path, text: &str) -> Result<(), RebindError> {
        self.kernel.write(file, text).map_err(|source| RebindError::Write {
            file: file.to_owned(),
            text: text.trim().to_owned(),
            source,
        })
    }
}
