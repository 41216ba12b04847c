//! What can go wrong, and what to do next.

use std::io;
use std::path::PathBuf;

use kohakuriver_model::InstanceId;

use super::address::PciAddress;
use super::plan::Refusal;
use super::rebind::RebindError;
use super::usage::User;

/// Why functions were not given, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{address} is with the VPS {task} still")]
    Taken { address: PciAddress, task: InstanceId },
    #[error(
        "process {} ({}) has {} open: end it, then try again", .0.pid, .0.name, .0.node.display()
    )]
    InUse(User),
    #[error(
        "the disk {0} is part of something (RAID, ZFS, a filesystem over several disks): take it out"
    )]
    DiskInUse(String),
    #[error("the kernel has no driver vfio-pci: its module belongs to the kernel's package")]
    NoDriver { source: io::Error },
    #[error("another process has {0} open: find it with fuser -v {0}")]
    Busy(String),
    #[error("cannot open {node}, which the kernel makes for a group that is with vfio-pci")]
    Node { node: PathBuf, source: io::Error },
    #[error(transparent)]
    Rebind(#[from] RebindError),
    #[error("not given back: {}", list(.0))]
    Kept(Vec<RebindError>),
    #[error("cannot read this machine's PCI functions")]
    Look { source: io::Error },
    #[error("cannot keep the journal {path}")]
    Journal { path: PathBuf, source: io::Error },
    #[error(
        "{0} is damaged and was moved aside: functions that it spoke of stay with vfio-pci until \
         the next boot"
    )]
    Damaged(PathBuf),
}

/// Causes are part of the text here: there may be several.
fn list(errors: &[RebindError]) -> String {
    let with_cause = |error: &RebindError| match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    errors.iter().map(with_cause).collect::<Vec<_>>().join("; ")
}
