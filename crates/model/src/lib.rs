//! The types and rules of KohakuRiver, without any input or output.
//!
//! Everything here is plain data and pure functions: ids, the target grammar, amounts of memory, an
//! instance's intent ([`intent`]), its observation ([`observe`]), the public status computed from
//! both ([`status`]), the acts that are possible next ([`admission`]), the placement of new
//! instances ([`placement`]) and quotas ([`account`]). Time is a parameter; nothing here reads a
//! clock.

pub mod account;
pub mod admission;
pub mod bounds;
pub mod id;
pub mod image;
pub mod intent;
pub mod memory;
pub mod mount;
pub mod name;
pub mod node;
pub mod observe;
pub mod placement;
pub mod spec;
pub mod status;
pub mod target;

pub use account::{AccountError, GroupId, Holdings, OverQuota, Quota, Role, ShareLevel, UserId};
pub use admission::{Act, Admission};
pub use id::{InstanceId, NodeId};
pub use image::{ImageReference, ReferenceError, Registry, RepositoryPattern};
pub use intent::{Desired, Intent};
pub use memory::Memory;
pub use mount::{MountError, MountWish};
pub use name::{InstanceName, NodeName, QualifiedName, VmImageName};
pub use node::{DockerState, GpuRuntime, Inventory, Metrics, VmAccel, VmState};
pub use observe::{FailureCode, Observation, Observed};
pub use placement::{Demand, GpuDemand, NodeCapacity, Placed, Refusal, place};
pub use spec::{
    BackendKind, GpuRef, ImageSource, InstanceSpec, NumaPin, OnOom, People, SnapshotPolicy,
    SnapshotRef, SshAccess, TrustedCa,
};
pub use status::{Status, public_status};
pub use target::Target;
