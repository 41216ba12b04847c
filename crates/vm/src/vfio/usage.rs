//! What of this machine depends on a PCI function, and which processes have it open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::address::PciAddress;
use super::pci::Roots;

/// Mounted disks and interfaces that are up, by the function they hang on.
pub(super) struct Carried(BTreeMap<PciAddress, String>);

impl Carried {
    pub fn read(roots: &Roots) -> Self {
        let mounts = Mounts::read(&roots.proc);
        let mut carried = BTreeMap::new();
        for (name, path, address) in disks(roots) {
            if let Some(use_) = mounts.use_of(&name, &path) {
                carried.entry(address).or_insert_with(|| format!("the disk {name}, {use_}"));
            }
        }
        for (name, path, address) in of_class(roots, "net") {
            let flags = fs::read_to_string(path.join("flags")).unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
            if flags.is_ok_and(|flags| flags & 1 == 1) {
                carried
                    .entry(address)
                    .or_insert_with(|| format!("the network interface {name}, which is up"));
            }
        }
        Self(carried)
    }

    pub fn by(&self, address: PciAddress) -> Option<String> {
        self.0.get(&address).cloned()
    }
}

/// The devices of a class that hang on a PCI function: name, directory, function.
fn of_class(roots: &Roots, class: &str) -> Vec<(String, PathBuf, PciAddress)> {
    let entries = fs::read_dir(roots.sys.join("class").join(class)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            // ../../devices/pci0000:00/0000:00:1c.0/0000:02:00.0/nvme/nvme0/nvme0n1: the last
            // address is the device, those before it are bridges.
            let target = fs::read_link(entry.path()).ok()?;
            let parts = target.components().rev();
            let address =
                parts.filter_map(|part| part.as_os_str().to_str()?.parse().ok()).next()?;
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.path(), address))
        })
        .collect()
}

/// Disks and their partitions by the controller they hang on.
fn disks(roots: &Roots) -> Vec<(String, PathBuf, PciAddress)> {
    let mut disks = of_class(roots, "block");
    // An NVMe namespace that may have several paths hangs on no controller: its paths do, and
    // they are only there for us to find it.
    let heads: Vec<(String, PciAddress)> =
        disks.iter().filter_map(|(name, _, address)| Some((head_of(name)?, *address))).collect();
    let entries = fs::read_dir(roots.sys.join("class/block")).into_iter().flatten().flatten();
    for entry in entries.filter(|_| !heads.is_empty()) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        for (head, address) in &heads {
            let rest = name.strip_prefix(head.as_str());
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p')) {
                disks.push((name.clone(), entry.path(), *address));
            }
        }
    }
    disks
}

/// `nvme0n1` of its path `nvme0c1n1`.
fn head_of(path: &str) -> Option<String> {
    let (subsystem, rest) = path.strip_prefix("nvme")?.split_once('c')?;
    let (_, namespace) = rest.split_once('n')?;
    Some(format!("nvme{subsystem}n{namespace}"))
}

/// What is mounted and swapped to.
struct Mounts {
    by_number: BTreeMap<String, String>,
    by_path: BTreeMap<String, String>,
}

impl Mounts {
    fn read(proc: &Path) -> Self {
        let mut mounts = Self { by_number: BTreeMap::new(), by_path: BTreeMap::new() };
        let text = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
        for line in text.lines() {
            // 36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/sda1 rw
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let before: Vec<&str> = before.split(' ').collect();
            let (Some(number), Some(place)) = (before.get(2), before.get(4)) else { continue };
            let use_ = format!("mounted on {place}");
            if let Some(source) = after.split(' ').nth(1) {
                mounts.by_path.entry(source.to_owned()).or_insert_with(|| use_.clone());
            }
            mounts.by_number.entry((*number).to_owned()).or_insert(use_);
        }
        let text = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
        for path in text.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            mounts.by_path.insert(path.to_owned(), "used as swap".to_owned());
        }
        mounts
    }

    fn use_of(&self, name: &str, path: &Path) -> Option<String> {
        let number = fs::read_to_string(path.join("dev")).unwrap_or_default();
        let holder = || {
            let holder = fs::read_dir(path.join("holders")).ok()?.flatten().next()?;
            Some(format!("used by {}", holder.file_name().to_string_lossy()))
        };
        self.by_number
            .get(number.trim())
            .or_else(|| self.by_path.get(&format!("/dev/{name}")))
            .cloned()
            .or_else(holder)
    }
}

/// A process that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub pid: u32,
    pub name: String,
    pub node: PathBuf,
}

/// Somebody who uses one of these functions through its present driver. Taking a driver away
/// under a user waits inside the kernel for as long as the user stays.
pub(super) fn user_of(roots: &Roots, functions: &BTreeSet<PciAddress>) -> Option<User> {
    let mut nodes = BTreeSet::new();
    for (class, dir) in [("drm", "dri"), ("sound", "snd")] {
        let devices = of_class(roots, class);
        let ours = devices.into_iter().filter(|(_, _, address)| functions.contains(address));
        nodes.extend(ours.map(|(name, ..)| roots.dev.join(dir).join(name)));
    }
    for function in functions {
        let gpu = roots.proc.join("driver/nvidia/gpus").join(function.to_string());
        let facts = fs::read_to_string(gpu.join("information")).unwrap_or_default();
        let minor = facts.lines().find_map(|line| line.strip_prefix("Device Minor:"));
        nodes.extend(minor.map(|minor| roots.dev.join(format!("nvidia{}", minor.trim()))));
    }
    user_of_nodes(roots, &nodes)
}

/// The first process found that has one of these device files open.
pub(super) fn user_of_nodes(roots: &Roots, nodes: &BTreeSet<PathBuf>) -> Option<User> {
    if nodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir(&roots.proc).into_iter().flatten().flatten();
    processes
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .find_map(|(pid, path)| {
            let files = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
            let node = files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .find(|node| nodes.contains(node))?;
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            Some(User { pid, name: name.trim().to_owned(), node })
        })
}

/// A disk of one of these functions that something in the kernel has claimed for itself (a
/// filesystem over several disks, RAID, ZFS), which a list of mounts does not show.
pub(super) fn claimed_disk(roots: &Roots, functions: &BTreeSet<PciAddress>) -> Option<String> {
    disks(roots).into_iter().filter(|(_, _, address)| functions.contains(address)).find_map(
        |(name, _, _)| {
            let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let outcome = open(&roots.dev.join(&name), flags, Mode::empty());
            (outcome.err() == Some(Errno::EBUSY)).then_some(name)
        },
    )
}
