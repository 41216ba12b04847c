//! The GPUs of this node in one list, independent of which driver or VM has them now.
//!
//! ```text
//!   nvidia-smi: what NVIDIA's driver has --.
//!   the book: what it had before ----------+--> first those, in the order of the bus
//!   sysfs: displays behind an IOMMU -------'--> then the others
//! ```
//!
//! `nvidia-smi` does not see a card that a machine has, and counts the others anew. So what it
//! told of a card is kept in a book, by the card's place: a card keeps its identity and its number
//! while it is with vfio-pci.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kohakuriver_model::node::{Gpu, GpuVfio};
use kohakuriver_model::{GpuRef, GpuRuntime, InstanceId};
use kohakuriver_vm::vfio::{self, Function, Pci, PciAddress, Roots, Vfio, VfioError};

use book::Book;

mod book;
mod nvidia_smi;
mod pci_names;

const HOOKS: [&str; 2] = ["nvidia-container-runtime-hook", "nvidia-container-toolkit"];
/// NVIDIA, AMD, Intel: whose displays compute. Others are the board's own small ones.
const MAKERS: [u16; 3] = [0x10de, 0x1002, 0x8086];

const NOT_ROOT: &str =
    "the node's runner is not root, and only root can take a card from its driver";

/// The cards as they are, and the book brought up to date.
pub async fn detect(data: &Path) -> Vec<Gpu> {
    let listed = nvidia_smi::list(Path::new("/sys/bus/pci/devices")).await;
    let vfio = devices(data);
    let data = data.to_owned();
    let all = listed.clone();
    let detected = tokio::task::spawn_blocking(move || {
        let root = nix::unistd::geteuid().is_root();
        let sight = Sight { pci: vfio.look()?, held: vfio.held()?, root };
        let book = Book::load(&data);
        let fresh = book.updated(&all, &sight.pci);
        if fresh != book
            && let Err(error) = fresh.save(&data)
        {
            tracing::warn!(%error, "cannot write gpus.json");
        }
        Ok::<_, VfioError>(sight.gpus(all, &fresh))
    });
    match detected.await {
        Ok(Ok(gpus)) => gpus,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot read this node's PCI devices");
            listed
        }
        Err(_) => listed,
    }
}

/// Returns the VFIO access to this node's GPUs.
pub fn devices(data: &Path) -> Vfio {
    Vfio::new(data.join("vfio"), Roots::default())
}

/// A card that was promised and is not there.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("this node no longer has GPU {0}: list its GPUs with 'kohakuriver node status'")]
    Gone(String),
    #[error(transparent)]
    Inspect(#[from] VfioError),
}

/// Where the cards of a machine are. Displays that are in no list but in a card's group, such as
/// the board's own, go along.
pub fn places(
    data: &Path,
    vfio: &Vfio,
    gpus: &[GpuRef],
) -> Result<BTreeSet<PciAddress>, FindError> {
    let book = Book::load(data);
    let pci = vfio.look()?;
    let mut places = BTreeSet::new();
    for gpu in gpus {
        let place = book.place_of(&gpu.uuid).or_else(|| {
            pci.gpus.iter().copied().find(|at| Gpu::identity_at(&at.to_string()) == gpu.uuid)
        });
        let place = place.filter(|place| pci.gpus.contains(place));
        places.insert(place.ok_or_else(|| FindError::Gone(gpu.uuid.clone()))?);
    }
    let unlisted = |place: &PciAddress| {
        pci.functions.get(place).is_some_and(|function| !MAKERS.contains(&function.vendor))
    };
    let along: Vec<PciAddress> =
        places.iter().flat_map(|place| pci.peers(*place)).filter(unlisted).collect();
    places.extend(along);
    Ok(places)
}

/// Whether NVIDIA's container toolkit is there: the engine hands out GPUs through this hook, or
/// through a runtime of the same package.
pub fn runtime() -> GpuRuntime {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .any(|dir| HOOKS.iter().any(|hook| dir.join(hook).is_file()));
    if found { GpuRuntime::Ready } else { GpuRuntime::Missing }
}

/// The kernel's PCI devices, and the GPUs that the journal assigns to VMs.
struct Sight {
    pci: Pci,
    held: BTreeMap<PciAddress, InstanceId>,
    /// Only root can take a card from its driver.
    root: bool,
}

impl Sight {
    fn gpus(&self, listed: Vec<Gpu>, book: &Book) -> Vec<Gpu> {
        let mut gpus = book.with_missing(listed);
        let known: BTreeSet<PciAddress> = gpus.iter().filter_map(place).collect();
        let others = self.pci.gpus.iter().filter_map(|address| self.pci.functions.get(address));
        let others: Vec<&Function> = others
            .filter(|function| MAKERS.contains(&function.vendor) && function.group.is_some())
            .filter(|function| !known.contains(&function.address))
            .collect();
        let names = pci_names::lookup(others.iter().map(|other| (other.vendor, other.device)));
        for (other, name) in others.into_iter().zip(names) {
            let address = other.address.to_string();
            gpus.push(Gpu {
                index: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
                uuid: Gpu::identity_at(&address),
                name,
                pci_address: address,
                memory_bytes: 0,
                numa: other.numa,
                no_container: None,
                vfio: GpuVfio::default(),
            });
        }
        let identities: BTreeMap<PciAddress, String> =
            gpus.iter().filter_map(|gpu| Some((place(gpu)?, gpu.uuid.clone()))).collect();
        for gpu in &mut gpus {
            if let Some(function) = place(gpu).and_then(|place| self.pci.functions.get(&place)) {
                gpu.vfio = self.vfio(function, &identities);
                gpu.no_container = gpu.no_container.take().and(self.no_container(function));
            }
        }
        gpus
    }

    fn vfio(&self, gpu: &Function, identities: &BTreeMap<PciAddress, String>) -> GpuVfio {
        let unit = self.pci.unit(gpu.address);
        let is_sound = |address: &&PciAddress| {
            let function = self.pci.functions.get(address);
            address.is_same_slot(gpu.address) && function.is_some_and(Function::is_audio)
        };
        let peers = self.pci.peers(gpu.address);
        GpuVfio {
            group: gpu.group,
            peers: peers.iter().filter_map(|peer| identities.get(peer).cloned()).collect(),
            refusal: vfio::refusal(&self.pci, gpu.address)
                .map(|refusal| refusal.to_string())
                .or_else(|| (!self.root).then(|| NOT_ROOT.to_owned())),
            vendor_id: format!("{:04x}", gpu.vendor),
            device_id: format!("{:04x}", gpu.device),
            audio: unit.iter().find(is_sound).map(ToString::to_string),
            bound: gpu.is_with_vfio(),
        }
    }

    /// Why NVIDIA's driver does not list it. One that a machine has is in that machine's account,
    /// and back when that ends.
    fn no_container(&self, gpu: &Function) -> Option<String> {
        let with_machine = gpu.is_with_vfio() && self.held.contains_key(&gpu.address);
        match gpu.driver.as_deref() {
            _ if with_machine => None,
            Some("vfio-pci") => Some("was bound to vfio-pci by hand".to_owned()),
            Some("nvidia") => Some("is not listed by nvidia-smi: see dmesg on the node".to_owned()),
            Some(other) => Some(format!("is bound to driver {other} instead of nvidia")),
            None => {
                Some("has no driver: run 'modprobe nvidia' on the node, and see dmesg".to_owned())
            }
        }
    }
}

fn place(gpu: &Gpu) -> Option<PciAddress> {
    gpu.pci_address.parse().ok()
}

#[cfg(test)]
mod tests;
