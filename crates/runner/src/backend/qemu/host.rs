//! What the node gives machines: QEMU, an accelerator, processors and memory.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use kohakuriver_model::spec::DEFAULT_VM_MEMORY_BYTES;
use kohakuriver_model::{InstanceSpec, TaskId, VmState};
use kohakuriver_vm::accel::{self, AccelWish, Choice, Qemu};

use super::QemuConfig;
use super::devices::Devices;
use super::record::MachineLimits;
use crate::backend::BackendError;
use crate::inventory;

/// Looked at once, and again when QEMU or the kernel's device changed.
#[derive(Debug)]
pub struct Host {
    wish: AccelWish,
    pub devices: Devices,
    known: Mutex<Option<Known>>,
    looking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Known {
    of: Signs,
    outcome: Result<(Qemu, Choice), String>,
}

/// What changes when the answer may.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signs {
    qemu: Option<SystemTime>,
    qemu_img: bool,
    kvm: bool,
}

const INSTALL: &str = "apt-get install qemu-system-x86 qemu-utils (kohakuriver qemu check shows what else is missing)";

impl Host {
    pub fn new(config: &QemuConfig) -> Self {
        Self {
            wish: config.settings.accel,
            devices: Devices::new(config.layout.data()),
            known: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// For the inventory.
    pub async fn state(&self) -> VmState {
        match self.look().await {
            Ok((qemu, choice)) => VmState::Ready {
                version: qemu.version,
                accel: choice.accel,
                warning: choice.warning,
            },
            Err(reason) => VmState::Unavailable { reason },
        }
    }

    /// For a start.
    pub async fn ready(&self) -> Result<(Qemu, Choice), BackendError> {
        self.look().await.map_err(|reason| BackendError::NoMachine {
            reason: format!("this node cannot run virtual machines: {reason}"),
            hint: INSTALL.to_owned(),
        })
    }

    /// What people should know of machines here.
    pub fn warning(&self) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref()?.outcome.as_ref().ok()?.1.warning.clone()
    }

    async fn look(&self) -> Result<(Qemu, Choice), String> {
        // One at a time: who comes second finds what the first has found out.
        let _looking = self.looking.lock().await;
        let program = accel::find_qemu();
        let modified =
            |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
        let signs = Signs {
            qemu: program.as_deref().and_then(modified),
            qemu_img: accel::find_program("qemu-img").is_some(),
            kvm: Path::new("/dev/kvm").exists(),
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| known.of == signs) {
            return known.outcome;
        }
        let outcome = match program {
            None => Err("QEMU is not installed".to_owned()),
            Some(_) if !signs.qemu_img => Err("qemu-img is not installed".to_owned()),
            Some(program) => self.ask(&program).await,
        };
        if let Ok((qemu, Choice { accel, warning })) = &outcome {
            let warning = warning.as_deref().unwrap_or("");
            tracing::info!(version = qemu.version, accel = accel.word(), warning, "QEMU found");
        }
        let known = Known { of: signs, outcome: outcome.clone() };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        outcome
    }

    async fn ask(&self, program: &Path) -> Result<(Qemu, Choice), String> {
        let qemu = accel::ask_version(program).await?;
        Ok((qemu, accel::choose(program, self.wish).await?))
    }
}

impl Host {
    /// The lowest address of the subnet that nobody has.
    pub fn free_address(&self, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, BackendError> {
        let first = u32::from(Ipv4Addr::new(10, 200, 0, 2));
        (first..first + 253)
            .map(Ipv4Addr::from)
            .find(|address| !taken.contains(address))
            .ok_or_else(|| BackendError::NoMachine {
                reason: "no address is free".to_owned(),
                hint: "delete a machine".to_owned(),
            })
    }

    /// Who a machine's QEMU is; root gives each its own.
    pub fn user(&self, address: Ipv4Addr) -> Option<u32> {
        let root = nix::unistd::geteuid().is_root();
        root.then(|| FIRST_USER + (u32::from(address) & 0xffff))
    }

    pub async fn plug(
        &self,
        id: TaskId,
        _address: Ipv4Addr,
        _user: Option<u32>,
    ) -> Result<Nic, BackendError> {
        let port = 20000 + (id.as_u64() % 20000) as u16;
        Ok(Nic {
            args: vec![
                "-netdev".into(),
                format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:7722"),
                "-device".into(),
                "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:12:34:56".into(),
            ],
        })
    }

    pub async fn unplug(&self, _id: TaskId) {}

    pub fn agent_address(&self, id: TaskId, _address: Ipv4Addr) -> Option<SocketAddr> {
        let port = 20000 + (id.as_u64() % 20000) as u16;
        Some((Ipv4Addr::LOCALHOST, port).into())
    }

    pub async fn sweep(&self, living: &[TaskId]) {
        self.devices.repair(living).await;
    }
}

/// Above what distributions and containers give out.
const FIRST_USER: u32 = 1_900_000_000;

pub struct Nic {
    pub args: Vec<String>,
}
impl Nic {
    pub fn network_config(&self) -> String {
        "version: 2\nethernets:\n  net0:\n    match:\n      macaddress: \"52:54:00:12:34:56\"\n    addresses: [10.0.2.15/24]\n    routes:\n      - {to: 0.0.0.0/0, via: 10.0.2.2}\n    nameservers:\n      addresses: [10.0.2.3]\n".to_owned()
    }
}

/// What a specification comes to here: without a limit of cores, a processor for each of the node.
pub fn limits(spec: &InstanceSpec) -> MachineLimits {
    let (cores, _) = inventory::size();
    let cores = match (&spec.numa, spec.cores) {
        (Some(pin), 0) => u32::try_from(pin.cpus.len()).unwrap_or(cores),
        (None, 0) => cores,
        (_, wanted) => wanted,
    };
    let memory_bytes = spec.memory_bytes.unwrap_or(DEFAULT_VM_MEMORY_BYTES);
    // QEMU counts in MiB.
    MachineLimits { cores, memory_bytes: memory_bytes >> 20 << 20 }
}
