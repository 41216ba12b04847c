//! Virtual machines, without the runner: what QEMU is started with, how it is spoken to, and what
//! a machine needs around it.
//!
//! ```text
//!  accel         whether guests run under KVM here
//!  command       the arguments of one machine's QEMU
//!  disk          layers and the disks on them
//!  distribution  this machine's release, its package sources, a system made of them
//!  guest_agent   QEMU's own agent in a guest, for freezing filesystems
//!  image         base images: kept, imported, built from the distribution's packages
//!  launch        the process that becomes QEMU
//!  network       addresses, the bridge and its TAPs, the firewall's table
//!  qmp           speaking to a running QEMU
//!  seed          what the guest is told at boot, as a disk
//!  vfio          PCI devices that are given to a machine whole, and given back whatever happens
//! ```
//!
//! When to do what is the runner's: `kohakuriver_runner::backend::qemu` puts these together.

pub mod accel;
pub mod command;
pub mod disk;
pub mod distribution;
pub mod guest_agent;
pub mod image;
pub mod launch;
pub mod network;
pub mod qmp;
pub mod seed;
pub mod vfio;
