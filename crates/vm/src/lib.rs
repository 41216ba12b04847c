//! Virtual machines, without the runner: what QEMU is started with, how it is spoken to, and what
//! a machine needs around it.
//!
//! ```text
//!  image     base images: kept, imported, built from the distribution's packages
//!  network   addresses, the bridge and its TAPs, the firewall's table
//!  vfio      PCI devices that are given to a machine whole, and given back whatever happens
//! ```
//!
//! When to do what is the runner's: `kohakuriver_runner::backend::qemu` puts these together.

pub mod image;
pub mod network;
pub mod vfio;
