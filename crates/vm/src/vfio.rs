//! PCI devices that are given to a machine whole, and given back whatever happens.
//!
//! ```text
//!              take: journal, then for each function of the groups
//!   drivers ----- override --> unbind --> probe -----------------> vfio-pci --> QEMU
//!      ^                        |   any failure, any kill -9          |
//!      '-- journal removed <-- bind <-- unbind <-- override restored -'  give_back, repair
//! ```
//!
//! The IOMMU keeps what is in one group from the rest of the machine, and cannot tell its members
//! apart: a group is given out whole or not at all ([`plan`]). Before anything is touched a
//! journal says how each function was; it goes when each is so again. [`Vfio::repair`] reads what
//! a killed runner left and gives back what belongs to no living machine. After a boot the kernel
//! has chosen all drivers anew, and a journal of before says nothing.
//!
//! All of this waits for the kernel, seconds at times: call it where blocking is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kohakuriver_model::InstanceId;

mod address;
mod arguments;
mod error;
mod journal;
mod kernel;
mod pci;
mod plan;
mod rebind;
mod usage;

pub use address::{AddressError, PciAddress};
pub use arguments::explain;
pub use error::VfioError;
pub use kernel::{Kernel, RunningKernel};
pub use pci::{Function, Pci, Roots, is_display};
pub use plan::{Plan, Refusal, plan, refusal};
pub use rebind::RebindError;
pub use usage::User;

use journal::{Entry, Held, Journal, Loaded};
use pci::VFIO_PCI;
use rebind::Rebind;

/// A QEMU that was killed lets go of its groups when its memory is given back, which takes a
/// large one seconds.
const LET_GO: Duration = Duration::from_secs(10);

/// Gives PCI functions to machines.
#[derive(Debug)]
pub struct Vfio {
    journal: Journal,
    roots: Roots,
    is_gpu: fn(u32) -> bool,
    kernel: Arc<dyn Kernel>,
    /// One at a time: a driver that lets go holds locks of the whole bus anyway.
    turn: Mutex<()>,
}

/// What a machine got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// For QEMU's command line. A device reaches all of the guest's memory by itself, so QEMU
    /// must be allowed to lock that (`RLIMIT_MEMLOCK`).
    pub arguments: Vec<String>,
    /// `/dev/vfio/GROUP`: QEMU's user must own these. `/dev/vfio/vfio` is for everybody.
    pub nodes: Vec<PathBuf>,
}

impl Vfio {
    /// Keeps its journal in `dir`, which it makes when it needs it.
    pub fn new(dir: PathBuf, roots: Roots) -> Self {
        Self {
            journal: Journal::new(dir),
            roots,
            is_gpu: is_display,
            kernel: Arc::new(RunningKernel),
            turn: Mutex::new(()),
        }
    }

    /// Other classes of devices than displays.
    #[must_use]
    pub fn with_devices(self, is_gpu: fn(u32) -> bool) -> Self {
        Self { is_gpu, ..self }
    }

    /// Tells another kernel what it tells.
    #[must_use]
    pub fn with_kernel(self, kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, ..self }
    }

    /// The functions of this machine, now.
    pub fn look(&self) -> Result<Pci, VfioError> {
        Pci::read(&self.roots, self.is_gpu).map_err(|source| VfioError::Look { source })
    }

    /// What the journal says is with machines of this boot.
    pub fn held(&self) -> Result<BTreeMap<PciAddress, InstanceId>, VfioError> {
        let boot_id = self.boot_id();
        let entries = self.load()?.entries;
        let current = entries.into_iter().filter(|(_, entry)| entry.boot_id == boot_id);
        Ok(current
            .flat_map(|(task, entry)| {
                entry.functions.into_iter().map(move |held| (held.address, task))
            })
            .collect())
    }

    /// Gives these GPUs and their groups to a machine that is about to start. What it held from
    /// an earlier try is given back first. If it fails, everything is as before.
    pub fn take(&self, task: InstanceId, gpus: &BTreeSet<PciAddress>) -> Result<Given, VfioError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_back_now(task)?;
        let pci = self.look()?;
        let plan = plan(&pci, gpus)?;
        if plan.bind.is_empty() {
            return Ok(Given { arguments: Vec::new(), nodes: Vec::new() });
        }
        let functions = self.note(&pci, &plan)?;
        if let Some(user) = usage::user_of(&self.roots, &plan.bind) {
            return Err(VfioError::InUse(user));
        }
        if let Some(disk) = usage::claimed_disk(&self.roots, &plan.bind) {
            return Err(VfioError::DiskInUse(disk));
        }
        let nodes: Vec<PathBuf> = plan.groups.iter().map(|group| self.node(*group)).collect();
        if let Some(node) = nodes.iter().find(|node| is_busy(node)) {
            return Err(self.who_uses(node));
        }
        self.ensure_driver()?;
        self.write_down(task, functions, &plan)?;
        if let Err(error) = self.bind(&plan) {
            if let Err(kept) = self.give_back_now(task) {
                tracing::error!(task.id = %task, error = %kept, "PCI functions are not back; the next start of the runner tries again");
            }
            return Err(error);
        }
        tracing::info!(task.id = %task, functions = ?plan.bind, "PCI functions given to a machine");
        Ok(Given { arguments: arguments::arguments(&plan.pass), nodes })
    }

    /// Gives back what a machine held, when its QEMU is gone. Holding nothing is fine.
    pub fn give_back(&self, task: InstanceId) -> Result<(), VfioError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_back_now(task)
    }

    /// Gives back what belongs to no living machine: at the runner's start, before any is made.
    /// Goes on after a failure; what failed is tried again the next time.
    pub fn repair(&self, living: &BTreeSet<InstanceId>) -> Vec<VfioError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { entries, damaged } = match self.load() {
            Ok(loaded) => loaded,
            Err(error) => return vec![error],
        };
        let mut errors = Vec::new();
        for path in damaged {
            // Aside, so that it is told once.
            let _ = fs::rename(&path, path.with_extension("damaged"));
            errors.push(VfioError::Damaged(path));
        }
        let boot_id = self.boot_id();
        for (task, entry) in entries {
            // No machine has outlived the boot.
            if entry.boot_id == boot_id && living.contains(&task) {
                continue;
            }
            errors.extend(self.give_back_now(task).err());
        }
        errors
    }

    fn give_back_now(&self, task: InstanceId) -> Result<(), VfioError> {
        let entries = self.load()?.entries;
        let Some((_, entry)) = entries.into_iter().find(|(known, _)| *known == task) else {
            return Ok(());
        };
        if entry.boot_id == self.boot_id() {
            self.return_all(&entry)?;
            tracing::info!(task.id = %task, "PCI functions given back");
        }
        self.journal.remove(task).map_err(|source| self.journal_error(task, source))
    }

    /// Each function to its old driver; those that can go, go, whatever the others do.
    fn return_all(&self, entry: &Entry) -> Result<(), VfioError> {
        // What the administrator keeps with vfio-pci is not ours to wait for.
        let ours = entry.functions.iter().filter(|held| held.driver.as_deref() != Some(VFIO_PCI));
        let nodes: BTreeSet<_> = ours.map(|held| self.node(held.group)).collect();
        self.wait_for_users(&nodes)?;
        let rebind = self.rebind();
        let back = entry.functions.iter().rev().map(|held| rebind.back(held));
        let errors: Vec<RebindError> = back.filter_map(Result::err).collect();
        for held in &entry.functions {
            // A group that the administrator keeps with vfio-pci has a node still, which was QEMU's.
            let _ = nix::unistd::chown(&self.node(held.group), Some(0.into()), Some(0.into()));
        }
        if errors.is_empty() { Ok(()) } else { Err(VfioError::Kept(errors)) }
    }

    /// A function that somebody uses would make the kernel wait, and us for the kernel. A process
    /// that was killed shows no open files well before the kernel has closed them: only the group
    /// itself can say.
    fn wait_for_users(&self, nodes: &BTreeSet<PathBuf>) -> Result<(), VfioError> {
        let patience = Instant::now() + LET_GO;
        while let Some(node) = nodes.iter().find(|node| is_busy(node)) {
            if Instant::now() >= patience {
                return Err(self.who_uses(node));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn who_uses(&self, node: &Path) -> VfioError {
        match usage::user_of_nodes(&self.roots, &BTreeSet::from([node.to_owned()])) {
            Some(user) => VfioError::InUse(user),
            None => VfioError::Busy(node.display().to_string()),
        }
    }

    /// How the functions of a plan are now. One that an ended machine has not given back to its
    /// driver, because that would not take it, changes hands with what is known of it.
    fn note(&self, pci: &Pci, plan: &Plan) -> Result<Vec<Held>, VfioError> {
        let boot_id = self.boot_id();
        let mut known: BTreeMap<PciAddress, (InstanceId, Held)> = BTreeMap::new();
        for (task, entry) in self.load()?.entries {
            if entry.boot_id == boot_id {
                known.extend(entry.functions.into_iter().map(|held| (held.address, (task, held))));
            }
        }
        let functions = plan.bind.iter().filter_map(|address| pci.functions.get(address));
        functions
            .map(|function| match known.remove(&function.address) {
                Some((task, held)) if function.is_with_vfio() => {
                    Err(VfioError::Taken { address: held.address, task })
                }
                Some((_, held)) => Ok(held),
                None => Ok(Held {
                    address: function.address,
                    group: function.group.unwrap_or_default(),
                    driver: function.driver.clone(),
                    driver_override: function.driver_override.clone(),
                }),
            })
            .collect()
    }

    /// From here on a function is in one entry only.
    fn write_down(
        &self,
        task: InstanceId,
        functions: Vec<Held>,
        plan: &Plan,
    ) -> Result<(), VfioError> {
        let others = self.load()?.entries;
        let write = |task, entry: &Entry| {
            self.journal.write(task, entry).map_err(|source| self.journal_error(task, source))
        };
        write(task, &Entry { boot_id: self.boot_id(), functions })?;
        for (other, mut entry) in others {
            let before = entry.functions.len();
            entry.functions.retain(|held| !plan.bind.contains(&held.address));
            if entry.functions.len() < before {
                write(other, &entry)?;
            }
        }
        Ok(())
    }

    fn bind(&self, plan: &Plan) -> Result<(), VfioError> {
        let rebind = self.rebind();
        for address in &plan.bind {
            rebind.to_vfio(*address)?;
        }
        for group in &plan.groups {
            let node = self.node(*group);
            match open_group(&node) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    return Err(self.who_uses(&node));
                }
                Err(source) => return Err(VfioError::Node { node, source }),
            }
        }
        Ok(())
    }

    fn ensure_driver(&self) -> Result<(), VfioError> {
        let driver = self.roots.driver(VFIO_PCI);
        if !driver.exists() {
            let loaded = self.kernel.load_module(VFIO_PCI);
            loaded.map_err(|source| VfioError::NoDriver { source })?;
        }
        // It maps the guest's memory. Usually it comes along; where it does not, QEMU says so.
        if !self.roots.sys.join("module/vfio_iommu_type1").exists() {
            let _ = self.kernel.load_module("vfio_iommu_type1");
        }
        if driver.exists() {
            return Ok(());
        }
        Err(VfioError::NoDriver { source: io::ErrorKind::NotFound.into() })
    }

    fn rebind(&self) -> Rebind<'_> {
        Rebind { roots: &self.roots, kernel: &*self.kernel }
    }

    fn node(&self, group: u32) -> PathBuf {
        self.roots.dev.join("vfio").join(group.to_string())
    }

    /// Another one at each boot.
    fn boot_id(&self) -> String {
        let path = self.roots.proc.join("sys/kernel/random/boot_id");
        fs::read_to_string(path).unwrap_or_default().trim().to_owned()
    }

    fn load(&self) -> Result<Loaded, VfioError> {
        self.journal
            .load_all()
            .map_err(|source| VfioError::Journal { path: self.journal.dir().to_owned(), source })
    }

    fn journal_error(&self, task: InstanceId, source: io::Error) -> VfioError {
        VfioError::Journal { path: self.journal.path(task), source }
    }
}

/// A group opens for one at a time.
fn open_group(node: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(node)
}

fn is_busy(node: &Path) -> bool {
    open_group(node).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests;
