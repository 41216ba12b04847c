//! The node's resources for VMs: QEMU, an accelerator, processors and memory.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kohakuriver_model::spec::DEFAULT_VM_MEMORY_BYTES;
use kohakuriver_model::{InstanceId, InstanceSpec, VmState};
use kohakuriver_vm::accel::{self, AccelWish, Choice, Qemu};

use super::QemuConfig;
use super::devices::Devices;
use super::net::Net;
use super::record::MachineLimits;
use crate::backend::BackendError;
use crate::inventory;

/// Looked at once, and again when QEMU or the kernel's device changed.
#[derive(Debug)]
pub struct Host {
    wish: AccelWish,
    pub net: Net,
    pub devices: Devices,
    known: Mutex<Option<Known>>,
    looking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Known {
    of: Signs,
    outcome: Result<(Qemu, Choice), String>,
    at: Instant,
}

/// Signs whose change may change the result of detection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Signs {
    qemu: Option<SystemTime>,
    qemu_img: bool,
    /// Whose `/dev/kvm` is, and who may open it.
    kvm: Option<(u32, u32)>,
}

const FAILURE_LASTS: Duration = Duration::from_secs(60);
/// KVM that a guest did not come up under in time may only have been busy: asked again after this.
const DOUBT_LASTS: Duration = Duration::from_secs(600);
const CHECK: &str = "'kohakuriver qemu check' on the node shows what is missing; apt-get install \
    qemu-system-x86 qemu-utils installs QEMU";

impl Host {
    pub fn new(config: &QemuConfig) -> Self {
        Self {
            wish: config.settings.accel,
            net: Net::new(config),
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
            hint: CHECK.to_owned(),
        })
    }

    /// Returns the warning about VMs on this node.
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
            kvm: std::fs::metadata("/dev/kvm").ok().map(|about| (about.mode(), about.gid())),
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A node that was busy may have failed the test: a failure does not count for long.
        let lasting = |known: &Known| match &known.outcome {
            Ok((_, Choice { warning: None, .. })) => true,
            Ok(_) => known.at.elapsed() < DOUBT_LASTS,
            Err(_) => known.at.elapsed() < FAILURE_LASTS,
        };
        if let Some(known) = known.filter(|known| known.of == signs && lasting(known)) {
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
        let known = Known { of: signs, outcome: outcome.clone(), at: Instant::now() };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        outcome
    }

    async fn ask(&self, program: &Path) -> Result<(Qemu, Choice), String> {
        let qemu = accel::ask_version(program).await?;
        Ok((qemu, accel::choose(program, self.wish).await?))
    }
}

impl Host {
    /// Gives back what belongs to no living machine. `false`: something is left.
    pub async fn sweep(&self, living: &[InstanceId]) -> bool {
        let (swept, repaired) = (self.net.sweep(living).await, self.devices.repair(living).await);
        swept && repaired
    }
}

/// Returns the limits of a specification; without a limit of cores, a processor for each of the node.
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
