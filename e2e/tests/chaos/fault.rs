//! What goes wrong.

use kohakuriver_e2e::{Cluster, NODES, Qemu};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::model::Model;

/// The virtual machines' on each node.
const BRIDGE: &str = "kohaku-br0";

/// One thing that breaks and is mended. `Pick` says which of the machines that are there.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    HostKilled,
    RunnerKilled(usize),
    HostAndRunnerKilled(usize),
    EngineKilled(usize),
    EngineAndRunnerKilled(usize),
    CablePulled(usize),
    HostDiskFull,
    QemuKilled(usize, Pick),
    QemuAndRunnerKilled(usize, Pick),
    /// For as long as it lasts they do nothing.
    QemusFrozen(usize),
    GuestPoweredOff(Pick),
    GuestPanicked(Pick),
    GuestReset(Pick),
    TapRemoved(Pick),
    BridgeRemovedAndRunnerKilled(usize),
    /// Seconds, either way.
    ClockMoved(i64),
}

pub type Pick = usize;

impl Fault {
    pub fn random(random: &mut StdRng, clock: bool) -> Self {
        let node = random.random_range(0..NODES.len());
        let pick = random.random_range(0..60);
        match random.random_range(0..if clock { 16 } else { 15 }) {
            0 => Self::HostKilled,
            1 => Self::RunnerKilled(node),
            2 => Self::HostAndRunnerKilled(node),
            3 => Self::EngineKilled(node),
            4 => Self::EngineAndRunnerKilled(node),
            5 => Self::CablePulled(node),
            6 => Self::HostDiskFull,
            7 => Self::QemuKilled(node, pick),
            8 => Self::QemuAndRunnerKilled(node, pick),
            9 => Self::GuestPoweredOff(pick),
            10 => Self::GuestPanicked(pick),
            11 => Self::GuestReset(pick),
            12 => Self::TapRemoved(pick),
            13 => Self::BridgeRemovedAndRunnerKilled(node),
            14 => Self::QemusFrozen(node),
            _ => Self::ClockMoved(random.random_range(-7200..7200)),
        }
    }

    /// Breaks it, and tells the model what that did to machines. `false`: nothing was there to break.
    pub fn begin(self, cluster: &mut Cluster, model: &mut Model) -> bool {
        match self {
            Self::HostKilled => cluster.kill_host(),
            Self::RunnerKilled(node) => cluster.kill_runner(node),
            Self::HostAndRunnerKilled(node) => {
                cluster.kill_host();
                cluster.kill_runner(node);
            }
            Self::EngineKilled(node) => cluster.engines[node].kill(),
            Self::EngineAndRunnerKilled(node) => {
                cluster.engines[node].kill();
                cluster.kill_runner(node);
            }
            Self::CablePulled(node) => cluster.network.cut(NODES[node]),
            Self::HostDiskFull => cluster.disk.fill(),
            Self::QemuKilled(node, pick) => return kill_qemu(cluster, model, node, pick),
            Self::QemuAndRunnerKilled(node, pick) => {
                cluster.kill_runner(node);
                kill_qemu(cluster, model, node, pick);
            }
            Self::QemusFrozen(node) => {
                cluster.qemus(node).iter().for_each(Qemu::freeze);
                return !cluster.qemus(node).is_empty();
            }
            Self::GuestPoweredOff(pick) => return end_guest(cluster, model, pick, "poweroff -f"),
            Self::GuestPanicked(pick) => {
                return end_guest(cluster, model, pick, "echo c >/proc/sysrq-trigger");
            }
            // It boots again by itself.
            Self::GuestReset(pick) => {
                let Some(guest) = model.one_that_runs(cluster, pick) else { return false };
                let _ = cluster.inside(&guest.name, "reboot -f");
            }
            Self::TapRemoved(pick) => {
                let Some(guest) = model.one_that_runs(cluster, pick) else { return false };
                cluster.network.remove_device(&guest.node, &guest.tap());
            }
            Self::BridgeRemovedAndRunnerKilled(node) => {
                cluster.kill_runner(node);
                cluster.network.remove_device(NODES[node], BRIDGE);
            }
            Self::ClockMoved(seconds) => move_clock(seconds),
        }
        true
    }

    pub fn end(self, cluster: &mut Cluster) {
        match self {
            Self::HostKilled => cluster.start_host(),
            Self::RunnerKilled(node)
            | Self::QemuAndRunnerKilled(node, _)
            | Self::BridgeRemovedAndRunnerKilled(node) => cluster.start_runner(node, None),
            Self::HostAndRunnerKilled(node) => {
                cluster.start_runner(node, None);
                cluster.start_host();
            }
            Self::EngineKilled(node) => cluster.restart_engine(node),
            Self::EngineAndRunnerKilled(node) => {
                cluster.start_runner(node, None);
                cluster.restart_engine(node);
            }
            Self::CablePulled(node) => cluster.network.mend(NODES[node]),
            Self::HostDiskFull => cluster.disk.free(),
            Self::QemusFrozen(node) => cluster.qemus(node).iter().for_each(Qemu::thaw),
            Self::ClockMoved(seconds) => move_clock(-seconds),
            // Theirs to mend, or nobody's.
            Self::QemuKilled(..)
            | Self::GuestPoweredOff(_)
            | Self::GuestPanicked(_)
            | Self::GuestReset(_)
            | Self::TapRemoved(_) => {}
        }
    }
}

fn kill_qemu(cluster: &Cluster, model: &mut Model, node: usize, pick: Pick) -> bool {
    let qemus = cluster.qemus(node);
    let Some(qemu) = qemus.get(pick % qemus.len().max(1)) else { return false };
    qemu.kill();
    model.is_struck(&qemu.task_id, true);
    true
}

fn end_guest(cluster: &Cluster, model: &mut Model, pick: Pick, how: &str) -> bool {
    let Some(guest) = model.one_that_runs(cluster, pick) else { return false };
    let _ = cluster.inside(&guest.name, how);
    // It may have been out of reach.
    model.is_struck(&guest.task_id, false);
    true
}

fn move_clock(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).unwrap();
}
