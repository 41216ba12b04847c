//! The trait behind which instances run: Docker, QEMU, and a fake in tests.
//!
//! A backend only does what it is told and shows what is there; when to do what is decided in
//! [`plan`](crate::plan). Every act may be repeated: starting what runs, stopping what rests and
//! removing what is gone succeed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use kohakuriver_model::{BackendKind, FailureCode, InstanceId, InstanceSpec, Inventory};
use kohakuriver_runner_link::protocol::{Machine, NodeReply, Order, Snapshot};
use tokio::net::UnixStream;

use crate::agent_stream::AgentAddress;

#[cfg(test)]
mod contract;
pub mod docker;
#[cfg(test)]
pub(crate) mod fake;
pub mod qemu;

pub use crate::plan::{BackendState, Lifecycle, Limits};

/// Receives what is being done and how far it is, in percent.
pub type Progress<'a> = &'a (dyn Fn(String, Option<u8>) + Send + Sync);

#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Adds whether it can work now to what is known of the machine, quickly.
    async fn describe(&self, inventory: &mut Inventory);

    /// Whether the node's owner lets it have what it asks for. Asked before it is made and before each
    /// start.
    ///
    /// # Errors
    /// They do not.
    fn permits(&self, _spec: &InstanceSpec) -> Result<(), BackendError> {
        Ok(())
    }

    /// Makes the image available and returns its identity. Dropping the future gives up.
    async fn prepare(&self, order: &Order, progress: Progress<'_>) -> Result<String, BackendError>;

    /// Makes the instance from a prepared image, not started.
    async fn create(&self, order: &Order, image: &str) -> Result<(), BackendError>;

    async fn start(&self, id: InstanceId) -> Result<(), BackendError>;

    /// Closes what only something that runs has, such as its end of a network, to others. Asked
    /// for after each start, while its agent boots; it counts as running when this is done.
    async fn contain(&self, _id: InstanceId) -> Result<(), BackendError> {
        Ok(())
    }

    /// Freezes every process of it.
    async fn pause(&self, id: InstanceId) -> Result<(), BackendError>;

    async fn resume(&self, id: InstanceId) -> Result<(), BackendError>;

    /// Asks it to end, and ends it when it has had its time. Its disk stays.
    async fn stop(&self, id: InstanceId) -> Result<(), BackendError>;

    /// Ends it at once. Its disk stays.
    async fn kill(&self, id: InstanceId) -> Result<(), BackendError>;

    /// Applies the specification's limits, running or not.
    async fn resize(&self, id: InstanceId, spec: &InstanceSpec) -> Result<(), BackendError>;

    /// The limits a specification comes to on this machine; what [`Self::inspect`] shows once
    /// they are applied.
    fn limits(&self, spec: &InstanceSpec) -> Limits;

    /// Removes it with its disk, running or not.
    async fn remove(&self, id: InstanceId) -> Result<(), BackendError>;

    async fn inspect(&self, id: InstanceId) -> Result<Option<BackendState>, BackendError>;

    /// Saves the disk as it is now, running or not. `keep`: the oldest beyond it go, 0 keeps all.
    async fn create_snapshot(
        &self,
        id: InstanceId,
        wish: &SnapshotSpec,
        keep: u32,
    ) -> Result<Snapshot, BackendError>;

    /// Paths of its disk that no snapshot has: a restore would lose what is in them.
    async fn outside(&self, _id: InstanceId) -> Result<Vec<String>, BackendError> {
        Ok(Vec::new())
    }

    /// Newest first.
    async fn list_snapshots(&self, id: InstanceId) -> Result<Vec<Snapshot>, BackendError>;

    async fn delete_snapshot(&self, id: InstanceId, tag: u64) -> Result<(), BackendError>;

    /// For an instance that is deleted. Disks of others that came from them stay.
    async fn delete_all_snapshots(&self, id: InstanceId) -> Result<(), BackendError>;

    /// Clears away what steps that were given up, failed, or were cut off by a crash left of an
    /// instance. Asked for while nothing is under way for it, also when it is gone: what no record
    /// of it names then is garbage. Cheap where there is none.
    async fn tidy(&self, _id: InstanceId) -> Result<(), BackendError> {
        Ok(())
    }

    /// Every instance of this node that is there.
    async fn list(&self) -> Result<Vec<(InstanceId, BackendState)>, BackendError>;

    /// Where the agent of one that runs is reached; `None` where there is none to wait for.
    fn agent(&self, id: InstanceId) -> Option<AgentAddress>;

    /// How long the agent may take to answer after a start.
    fn boot_limit(&self) -> Duration;

    /// Returns warnings about a running instance.
    fn remarks(&self, _id: InstanceId) -> Remarks {
        Remarks::default()
    }

    /// New settings for the agent of one that has been made.
    async fn refresh_settings(&self, order: &Order) -> std::io::Result<()>;

    /// The last lines the instance wrote, for error messages.
    async fn log_tail(&self, id: InstanceId) -> String;

    /// Serves one program of the exec protocol on the stream, by the backend's own means: neither
    /// the agent nor anything else of ours in the instance has to work.
    async fn attach(&self, id: InstanceId, stream: UnixStream);

    /// Lists the machines with files on the node, including those that no ledger has.
    fn retained(&self) -> std::io::Result<Vec<Machine>> {
        Ok(Vec::new())
    }

    /// The base images that instances can be made from.
    fn images(&self) -> NodeReply {
        NodeReply::VmImages { dir: String::new(), images: Vec::new() }
    }

    /// Changes, as hints to look again. The stream never ends.
    fn events(&self) -> BoxStream<'static, Change>;
}

/// The backends of one node.
#[derive(Clone)]
pub struct Backends {
    pub docker: Arc<dyn Backend>,
    pub qemu: Arc<dyn Backend>,
}

impl Backends {
    pub fn of(&self, kind: BackendKind) -> &Arc<dyn Backend> {
        match kind {
            BackendKind::Docker => &self.docker,
            BackendKind::Qemu => &self.qemu,
        }
    }

    pub fn all(&self) -> [&Arc<dyn Backend>; 2] {
        [&self.docker, &self.qemu]
    }

    /// Adds what works here to what is known of the machine.
    pub async fn describe(&self, inventory: &mut Inventory) {
        for backend in self.all() {
            backend.describe(inventory).await;
        }
    }
}

/// Facts about a running instance that decide nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    pub address: Option<IpAddr>,
    pub warning: Option<String>,
}

/// The name and message of a new snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSpec {
    pub name: Option<String>,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Instance(InstanceId),
    /// Events may have been missed.
    Everything,
}

/// The reason why a backend's operation failed. Clonable, because waiters share one pull.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    #[error("the Docker engine of this node is not available: {reason}")]
    Unavailable { reason: String, hint: String },
    #[error("image {image} is not on this node and cannot be pulled: {reason}")]
    ImageNotFound { image: String, reason: String },
    #[error("{what}: {reason}")]
    ImageUnavailable { what: String, reason: String, hint: String },
    #[error("no environment '{name}' in shared storage ({known})")]
    EnvironmentNotFound { name: String, known: String },
    #[error("the node's disk is full: {reason}")]
    DiskFull { reason: String },
    #[error("the instance has no snapshot {which}")]
    SnapshotNotFound { which: String },
    #[error("snapshot {tag} is in use: the disk of a VPS is built on it")]
    SnapshotInUse { tag: u64 },
    #[error("the instance already has a snapshot named '{name}'")]
    SnapshotNameTaken { name: String },
    #[error(
        "{} is in an engine volume outside the instance's disk: no snapshot can include it, and a \
         restore would delete it", paths.join(", ")
    )]
    OutsideDisk { paths: Vec<String> },
    #[error("this node's Docker engine cannot give GPUs to containers: {reason}")]
    NoGpuRuntime { reason: String },
    /// A VM's allocated GPUs cannot be attached.
    #[error("this node cannot attach the GPUs of the VM: {reason}")]
    NoGpu { reason: String },
    #[error("{by} refused to {act} the instance: {reason}")]
    Refused { by: &'static str, act: &'static str, reason: String },
    /// The node cannot run virtual machines, or not this one.
    #[error("{reason}")]
    NoMachine { reason: String, hint: String },
    /// The node's owner has not allowed it.
    #[error("{reason}")]
    NotAllowed { reason: String, hint: String },
    #[error("this node cannot isolate the instance from others: {reason}")]
    NotContained { reason: String },
    #[error("{act} did not finish within {seconds} s")]
    Slow { act: &'static str, seconds: u64 },
}

impl BackendError {
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Unavailable { .. } | Self::NoMachine { .. } => FailureCode::EngineUnavailable,
            Self::ImageNotFound { .. } => FailureCode::ImageNotFound,
            Self::ImageUnavailable { .. } => FailureCode::ImageUnavailable,
            Self::EnvironmentNotFound { .. } => FailureCode::EnvironmentNotFound,
            Self::DiskFull { .. } => FailureCode::DiskFull,
            Self::SnapshotNotFound { .. } => FailureCode::SnapshotNotFound,
            Self::NoGpuRuntime { .. } | Self::NoGpu { .. } => FailureCode::GpuUnavailable,
            Self::Refused { .. }
            | Self::SnapshotInUse { .. }
            | Self::SnapshotNameTaken { .. }
            | Self::OutsideDisk { .. }
            | Self::NotContained { .. }
            | Self::NotAllowed { .. } => FailureCode::StartRefused,
            Self::Slow { .. } => FailureCode::Internal,
        }
    }

    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unavailable { hint, .. }
            | Self::ImageUnavailable { hint, .. }
            | Self::NotAllowed { hint, .. }
            | Self::NoMachine { hint, .. } => hint.as_str(),
            Self::ImageNotFound { .. } => {
                "check the name, and whether it is public; an image that is on the node alone can be \
                 used where the node's owner starts its runner with --allow-local-image"
            }
            Self::EnvironmentNotFound { .. } => {
                "use a listed name, or put NAME-UNIXTIME.tar into shared storage"
            }
            Self::DiskFull { .. } => {
                "free space on the node: 'docker system df' and 'du -h' on its data directory show where \
                 it is"
            }
            Self::SnapshotNotFound { .. } => {
                "list its snapshots: kohakuriver vps snapshot list VPS"
            }
            Self::SnapshotInUse { .. } => {
                "delete the VPS that uses it first, or restore it to another snapshot"
            }
            Self::SnapshotNameTaken { .. } => {
                "choose another name, or delete that snapshot first: kohakuriver vps snapshot delete VPS NAME"
            }
            Self::OutsideDisk { .. } => {
                "copy it out with 'kohakuriver vps cp', create another VPS from the same image, and copy it \
                 in there: new VPSes have no such volumes"
            }
            Self::NoGpuRuntime { .. } => {
                "install nvidia-container-toolkit on the node, then run 'nvidia-ctk runtime \
                 configure --runtime=docker' and restart Docker"
            }
            Self::NotContained { .. } => {
                "retry with 'kohakuriver vps restart'; if that fails too, the node's owner finds the cause in the runner's log"
            }
            // What to do is in the reason.
            Self::NoGpu { .. } | Self::Refused { .. } | Self::Slow { .. } => return None,
        };
        Some(text.to_owned())
    }

    /// Nothing is known of the instance now: ask again later rather than report.
    pub fn is_engine_away(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Slow { .. } => true,
            Self::ImageNotFound { .. }
            | Self::ImageUnavailable { .. }
            | Self::EnvironmentNotFound { .. }
            | Self::DiskFull { .. }
            | Self::SnapshotNotFound { .. }
            | Self::SnapshotInUse { .. }
            | Self::SnapshotNameTaken { .. }
            | Self::OutsideDisk { .. }
            | Self::NoGpuRuntime { .. }
            | Self::NoGpu { .. }
            | Self::NoMachine { .. }
            | Self::NotContained { .. }
            | Self::NotAllowed { .. }
            | Self::Refused { .. } => false,
        }
    }
}
