//! Virtual machines, without the runner: what QEMU is started with, how it is spoken to, and what
//! a machine needs around it.
//!
//! ```text
//!  command   the arguments of one machine's QEMU
//!  disk      layers and the disks on them
//!  launch    the process that becomes QEMU
//!  qmp       speaking to it
//!  seed      what the guest is told at boot, as a disk
//!  accel     whether guests run under KVM here
//!  image     base images: kept, imported, built from the distribution's packages
//!  network   addresses, the bridge and its TAPs, the firewall's table
//!  vfio      PCI devices that are given to a machine whole, and given back whatever happens
//! ```
//!
//! When to do what is the runner's: `kohakuriver_runner::backend::qemu` puts these together.

pub mod accel;
pub mod command;
pub mod disk;
pub mod guest_agent;
pub mod image;
pub mod launch;
pub mod network;
pub mod qmp;
pub mod seed;
pub mod vfio;
