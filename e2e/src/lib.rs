//! What the end-to-end tests stand on: real processes of the one executable, the real Docker
//! engine, the real `ssh` and `scp`. Everything a test starts is stopped by pid and every
//! container it made is removed when its [`Site`] is dropped, also when the test fails.
//!
//! Needs root, a Docker engine, QEMU, OpenSSH's client, and the images of `scripts/e2e-images.sh`
//! and `scripts/vm-micro-image.sh`; `make test` sees to all of it. What is missing fails the test.

mod cluster;
mod disk;
mod docker;
mod engine;
mod guarded;
mod http;
mod machine;
mod memory;
mod network;
mod process;
mod pty;
mod site;
mod sshd;

pub use cluster::{Cluster, NODES};
pub use disk::SmallDisk;
pub use docker::{Relay, containers_under};
pub use engine::Engine;
pub use guarded::{Guarded, Person};
pub use http::{Answer, Connection, connect, exchange};
pub use machine::Qemu;
pub use memory::MemoryLimit;
pub use network::{Network, node_addresses};
pub use process::{Output, Server, run, run_with_input};
pub use pty::Terminal;
pub use site::{BUSYBOX, DEBIAN, SCRATCH, Site, executable};
pub use sshd::Sshd;

use std::time::{Duration, Instant};

/// What takes a moment on an idle computer has this long on one that is busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks until the answer is yes; panics with what was waited for after `limit`, which is how long it
/// takes at most where nothing else runs, or after [`PATIENCE`] where that is longer.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let limit = limit.max(PATIENCE);
    let deadline = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
