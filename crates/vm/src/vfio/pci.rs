//! The PCI functions of this machine and what depends on them, read from sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::address::PciAddress;
use super::usage::Carried;

/// The driver that lends a function to a process.
pub(super) const VFIO_PCI: &str = "vfio-pci";

/// Where the kernel's filesystems are mounted.
#[derive(Clone, Debug)]
pub struct Roots {
    pub sys: PathBuf,
    pub proc: PathBuf,
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

impl Roots {
    pub(super) fn device(&self, address: PciAddress) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address.to_string())
    }

    pub(super) fn driver(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/drivers").join(name)
    }
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    pub address: PciAddress,
    /// Base class, subclass, interface: `0x030000` is a VGA controller.
    pub class: u32,
    pub vendor: u16,
    pub device: u16,
    pub driver: Option<String>,
    /// The only driver that may have it.
    pub driver_override: Option<String>,
    /// The NUMA node it is plugged into, where the machine has several.
    pub numa: Option<u32>,
    /// The firmware showed its messages on it.
    pub boot_vga: bool,
    /// A part of another function that was cut up (SR-IOV).
    pub is_virtual: bool,
    /// How it can be reset between two machines, best first.
    pub reset_methods: Vec<String>,
    pub group: Option<u32>,
    /// What of this machine hangs on it: a mounted disk, a network interface that is up.
    pub carries: Option<String>,
}

impl Function {
    pub fn is_display(&self) -> bool {
        is_display(self.class)
    }

    /// A bridge between buses: it stays with its driver and does not count in its group.
    pub fn is_pci_bridge(&self) -> bool {
        matches!(self.class >> 8, 0x0604 | 0x0609)
    }

    /// Part of the board itself, such as the bridge to its own slow devices.
    pub(super) fn is_chipset(&self) -> bool {
        self.class >> 16 == 0x06 && !self.is_pci_bridge()
    }

    pub fn is_with_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_PCI)
    }

    pub fn is_audio(&self) -> bool {
        self.class >> 8 == 0x0403
    }
}

/// VGA, XGA, 3D and other display controllers.
pub fn is_display(class: u32) -> bool {
    class >> 16 == 0x03
}

/// All functions, which of them count as GPUs, and what the machine needs for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pci {
    pub functions: BTreeMap<PciAddress, Function>,
    /// Those that can be asked for.
    pub gpus: BTreeSet<PciAddress>,
    /// The console that is shown by the card the firmware used: `vtcon1`.
    pub console: Option<String>,
}

impl Pci {
    /// `is_gpu` is asked for each function's class.
    pub fn read(roots: &Roots, is_gpu: fn(u32) -> bool) -> io::Result<Self> {
        let carried = Carried::read(roots);
        let mut functions = BTreeMap::new();
        // A machine without PCI has no such directory; that is no error.
        let entries = match fs::read_dir(roots.sys.join("bus/pci/devices")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { functions, gpus: BTreeSet::new(), console: None });
            }
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(address) = name.parse::<PciAddress>() else { continue };
            // What is pulled out in this moment is not there.
            if let Some(mut function) = read_function(roots, &path, address) {
                function.carries = carried.by(address);
                functions.insert(address, function);
            }
        }
        let gpus = functions
            .values()
            .filter(|function| is_gpu(function.class) && !function.is_virtual)
            .map(|function| function.address)
            .collect();
        Ok(Self { functions, gpus, console: console(&roots.sys) })
    }

    /// Whether the machine has IOMMU groups at all.
    pub fn has_iommu(&self) -> bool {
        self.functions.values().any(|function| function.group.is_some())
    }

    /// What a GPU cannot be separated from: the functions of its slot, their groups, and all
    /// that is in these, bridges left out. In the order of the bus, itself included.
    pub fn unit(&self, gpu: PciAddress) -> BTreeSet<PciAddress> {
        let mut unit = BTreeSet::new();
        let mut open = vec![gpu];
        while let Some(address) = open.pop() {
            let Some(function) = self.functions.get(&address) else { continue };
            if !unit.insert(address) {
                continue;
            }
            let is_gpu = |address| self.gpus.contains(address);
            let mates = self.functions.values().filter(|mate| {
                let grouped = function.group.is_some() && mate.group == function.group;
                let beside = mate.address.is_same_slot(address)
                    && (is_gpu(&address) || is_gpu(&mate.address));
                (grouped || beside) && !mate.is_pci_bridge()
            });
            open.extend(mates.map(|mate| mate.address));
        }
        unit
    }

    /// The other GPUs that must go where this one goes.
    pub fn peers(&self, gpu: PciAddress) -> Vec<PciAddress> {
        let unit = self.unit(gpu);
        unit.into_iter().filter(|mate| *mate != gpu && self.gpus.contains(mate)).collect()
    }
}

fn read_function(roots: &Roots, path: &Path, address: PciAddress) -> Option<Function> {
    let text = |name: &str| fs::read_to_string(path.join(name)).ok();
    let hex = |name: &str| {
        let text = text(name)?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let short = |name: &str| hex(name).and_then(|value| u16::try_from(value).ok());
    Some(Function {
        address,
        class: hex("class")?,
        vendor: short("vendor")?,
        device: short("device")?,
        driver: linked_name(&path.join("driver")),
        driver_override: read_override(path),
        // -1 where there is nothing to choose.
        numa: text("numa_node").and_then(|text| text.trim().parse().ok()),
        boot_vga: text("boot_vga").is_some_and(|text| text.trim() == "1"),
        is_virtual: path.join("physfn").exists(),
        reset_methods: text("reset_method")
            .map(|text| text.split_whitespace().map(ToOwned::to_owned).collect())
            .unwrap_or_default(),
        group: linked_name(&path.join("iommu_group"))
            .filter(|group| !is_without_iommu(roots, group))
            .and_then(|group| group.parse().ok()),
        carries: None,
    })
}

pub(super) fn read_override(device: &Path) -> Option<String> {
    let text = fs::read_to_string(device.join("driver_override")).ok()?;
    let text = text.trim();
    (!text.is_empty() && text != "(null)").then(|| text.to_owned())
}

/// The last part of where a link leads.
pub(super) fn linked_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

/// VFIO can be made to work without an IOMMU, and protects nothing then.
fn is_without_iommu(roots: &Roots, group: &str) -> bool {
    let name = roots.sys.join("kernel/iommu_groups").join(group).join("name");
    fs::read_to_string(name).is_ok_and(|name| name.trim() == "vfio-noiommu")
}

/// The virtual terminals' driver that needs a card: text or frame buffer, not the dummy.
fn console(sys: &Path) -> Option<String> {
    let consoles = fs::read_dir(sys.join("class/vtconsole")).into_iter().flatten().flatten();
    let bound = consoles.filter(|entry| {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        read("bind").trim() == "1" && !read("name").contains("dummy")
    });
    bound.filter_map(|entry| entry.file_name().into_string().ok()).max()
}
