//! A machine of files: sysfs as the kernel lays it out, and what the kernel does with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::super::{Kernel, Pci, PciAddress, Roots, Vfio, is_display};

/// Its driver and its override, by address.
pub type State = BTreeMap<String, (Option<String>, Option<String>)>;

#[derive(Debug)]
pub struct Machine {
    dir: TempDir,
}

impl Machine {
    pub fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        for dir in ["sys/bus/pci/devices", "sys/class/vtconsole", "proc/sys/kernel/random"] {
            fs::create_dir_all(machine.path(dir)).unwrap();
        }
        for dir in ["sys/class/block", "sys/class/net", "sys/class/drm", "dev/vfio", "proc/self"] {
            fs::create_dir_all(machine.path(dir)).unwrap();
        }
        for driver in ["vfio-pci", "nvidia", "snd_hda_intel", "nvme", "e1000e", "lpc_ich"] {
            machine.load(driver);
        }
        fs::write(machine.path("sys/bus/pci/drivers_probe"), "").unwrap();
        machine.boot("first");
        machine
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn roots(&self) -> Roots {
        Roots { sys: self.path("sys"), proc: self.path("proc"), dev: self.path("dev") }
    }

    pub fn vfio(&self) -> Vfio {
        self.vfio_with(FakeKernel::new(self))
    }

    pub fn vfio_with(&self, kernel: FakeKernel) -> Vfio {
        Vfio::new(self.path("journal"), self.roots()).with_kernel(Arc::new(kernel))
    }

    pub fn pci(&self) -> Pci {
        Pci::read(&self.roots(), is_display).unwrap()
    }

    pub fn boot(&self, id: &str) {
        fs::write(self.path("proc/sys/kernel/random/boot_id"), format!("{id}\n")).unwrap();
    }

    pub fn load(&self, driver: &str) {
        let dir = self.path("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&dir).unwrap();
        for file in ["bind", "unbind"] {
            fs::write(dir.join(file), "").unwrap();
        }
    }

    /// A function with the driver that the kernel chooses for it.
    pub fn add(&self, address: &str, class: u32, driver: Option<&str>, group: Option<u32>) {
        let device = self.path("sys/devices/pci0000:00").join(address);
        fs::create_dir_all(&device).unwrap();
        symlink(&device, self.path("sys/bus/pci/devices").join(address)).unwrap();
        for (file, text) in [
            ("class", format!("0x{class:06x}\n")),
            ("vendor", "0x10de\n".to_owned()),
            ("device", "0x20b0\n".to_owned()),
            ("numa_node", "-1\n".to_owned()),
            ("driver_override", "(null)\n".to_owned()),
            ("reset_method", "flr bus\n".to_owned()),
            // Files of this machine only: what the kernel's own tables say.
            ("natural", driver.unwrap_or_default().to_owned()),
        ] {
            fs::write(device.join(file), text).unwrap();
        }
        if class >> 8 == 0x0300 {
            fs::write(device.join("boot_vga"), "0\n").unwrap();
        }
        if let Some(driver) = driver {
            self.load(driver);
            symlink(self.path("sys/bus/pci/drivers").join(driver), device.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let group = self.path("sys/kernel/iommu_groups").join(group.to_string());
            fs::create_dir_all(&group).unwrap();
            symlink(group, device.join("iommu_group")).unwrap();
        }
    }

    pub fn write(&self, address: &str, file: &str, text: &str) {
        fs::write(self.path("sys/bus/pci/devices").join(address).join(file), text).unwrap();
    }

    /// A device of a class that hangs on a function.
    pub fn child(&self, address: &str, class: &str, name: &str, files: &[(&str, &str)]) {
        let below = format!("devices/pci0000:00/{address}/{class}/{name}");
        fs::create_dir_all(self.path("sys").join(&below)).unwrap();
        fs::create_dir_all(self.path("sys/class").join(class)).unwrap();
        symlink(format!("../../{below}"), self.path("sys/class").join(class).join(name)).unwrap();
        for (file, text) in files {
            fs::write(self.path("sys").join(&below).join(file), text).unwrap();
        }
    }

    /// A process that has a device open.
    pub fn process(&self, pid: u32, name: &str, node: &str) {
        let process = self.path("proc").join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
        symlink(self.path("dev").join(node), process.join("fd/3")).unwrap();
    }

    pub fn state(&self) -> State {
        let functions = self.pci().functions.into_values();
        functions
            .map(|function| {
                (function.address.to_string(), (function.driver, function.driver_override))
            })
            .collect()
    }

    pub fn driver(&self, address: &str) -> Option<String> {
        self.state()[address].0.clone()
    }

    pub fn journals(&self) -> usize {
        fs::read_dir(self.path("journal")).into_iter().flatten().count()
    }
}

/// Two NVIDIA cards with their sound, each in a group of its own.
pub fn two_cards() -> Machine {
    let machine = Machine::new();
    for (bus, group) in [("01", 12), ("41", 33)] {
        let function = |function: u8| format!("0000:{bus}:00.{function}");
        machine.add(&function(0), 0x03_0200, Some("nvidia"), Some(group));
        machine.add(&function(1), 0x04_0300, Some("snd_hda_intel"), Some(group));
    }
    machine
}

/// Two cards behind one bridge, which share a group with it, and a disk beside them.
pub fn one_group() -> Machine {
    let machine = Machine::new();
    machine.add("0000:00:01.0", 0x06_0400, Some("pcieport"), Some(1));
    machine.add("0000:01:00.0", 0x03_0000, Some("nvidia"), Some(1));
    machine.add("0000:01:00.1", 0x04_0300, Some("snd_hda_intel"), Some(1));
    machine.add("0000:02:00.0", 0x03_0000, None, Some(1));
    machine.add("0000:03:00.0", 0x01_0802, Some("nvme"), Some(1));
    machine.add("0000:09:00.0", 0x02_0000, Some("e1000e"), Some(2));
    machine
}

/// Does to the files what the kernel does, and dies or fails where it is told to.
#[derive(Debug)]
pub struct FakeKernel {
    pub roots: Roots,
    pub writes: AtomicUsize,
    /// The process ends after so many writes.
    pub dies_after: Option<usize>,
    /// This write fails.
    pub fails_at: Option<usize>,
    /// Drivers that take nothing.
    pub sick: Mutex<BTreeSet<String>>,
    /// What `modprobe` finds.
    pub modules: Vec<String>,
}

impl FakeKernel {
    pub fn new(machine: &Machine) -> Self {
        Self {
            roots: machine.roots(),
            writes: AtomicUsize::new(0),
            dies_after: None,
            fails_at: None,
            sick: Mutex::default(),
            modules: Vec::new(),
        }
    }

    fn act(&self, file: &Path, text: &str) -> io::Result<()> {
        if !file.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = file.file_name().unwrap().to_str().unwrap();
        match name {
            "driver_override" => {
                let text = if text == "\n" { "(null)\n" } else { text };
                fs::write(file, text)
            }
            "unbind" => self.unbind(&parent(file), text),
            "bind" => self.bind(&parent(file), text.parse().unwrap()),
            "drivers_probe" => self.probe(text.parse().unwrap()),
            other => panic!("the kernel has no {other}"),
        }
    }

    fn unbind(&self, driver: &str, address: &str) -> io::Result<()> {
        let device = self.roots.device(address.parse().unwrap());
        if self.driver(&device).as_deref() != Some(driver) {
            return Err(io::Error::from_raw_os_error(19));
        }
        fs::remove_file(device.join("driver"))?;
        let group = self.group(&device);
        let devices = fs::read_dir(self.roots.sys.join("bus/pci/devices"))?;
        let others = devices.flatten().map(|entry| entry.path()).any(|other| {
            self.group(&other) == group && self.driver(&other).as_deref() == Some("vfio-pci")
        });
        if driver == "vfio-pci" && !others {
            fs::remove_file(self.roots.dev.join("vfio").join(group.unwrap()))?;
        }
        Ok(())
    }

    /// Takes the function if the tables or the override name the driver.
    fn bind(&self, driver: &str, address: PciAddress) -> io::Result<()> {
        let device = self.roots.device(address);
        let chosen = self.chosen(&device);
        let taken = device.join("driver").exists();
        if taken || chosen != driver || self.sick.lock().unwrap().contains(driver) {
            return Err(io::Error::from_raw_os_error(19));
        }
        symlink(self.roots.driver(driver), device.join("driver"))?;
        if driver == "vfio-pci" {
            let group = self.group(&device).unwrap();
            fs::write(self.roots.dev.join("vfio").join(group), "")?;
        }
        Ok(())
    }

    /// Finding nobody is no error.
    fn probe(&self, address: PciAddress) -> io::Result<()> {
        let driver = self.chosen(&self.roots.device(address));
        if self.roots.driver(&driver).exists() && !driver.is_empty() {
            let _ = self.bind(&driver, address);
        }
        Ok(())
    }

    fn chosen(&self, device: &Path) -> String {
        let text = fs::read_to_string(device.join("driver_override")).unwrap();
        match text.trim() {
            "(null)" => fs::read_to_string(device.join("natural")).unwrap(),
            driver => driver.to_owned(),
        }
    }

    fn driver(&self, device: &Path) -> Option<String> {
        Some(fs::read_link(device.join("driver")).ok()?.file_name()?.to_str()?.to_owned())
    }

    fn group(&self, device: &Path) -> Option<String> {
        Some(fs::read_link(device.join("iommu_group")).ok()?.file_name()?.to_str()?.to_owned())
    }
}

fn parent(file: &Path) -> String {
    file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

/// How the end of a process is told from a failed assertion.
pub const KILLED: &str = "killed";

impl Kernel for FakeKernel {
    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        let done = self.writes.fetch_add(1, Ordering::SeqCst);
        if self.dies_after == Some(done) {
            std::panic::panic_any(KILLED);
        }
        if self.fails_at == Some(done) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.act(file, text)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        if !self.modules.iter().any(|module| module == name) {
            return Err(io::Error::other(format!("modprobe {name}: not found")));
        }
        let dir = self.roots.driver(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("bind"), "")?;
        fs::write(dir.join("unbind"), "")
    }
}
