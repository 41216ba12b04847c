//! What goes wrong.

use kohakuriver_e2e::{Cluster, NODES};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use rand::RngExt;
use rand::rngs::StdRng;

/// One thing that breaks and is mended.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    HostKilled,
    RunnerKilled(usize),
    HostAndRunnerKilled(usize),
    EngineKilled(usize),
    EngineAndRunnerKilled(usize),
    CablePulled(usize),
    HostDiskFull,
    /// Seconds, either way.
    ClockMoved(i64),
}

impl Fault {
    pub fn random(random: &mut StdRng, clock: bool) -> Self {
        let node = random.random_range(0..NODES.len());
        match random.random_range(0..if clock { 8 } else { 7 }) {
            0 => Self::HostKilled,
            1 => Self::RunnerKilled(node),
            2 => Self::HostAndRunnerKilled(node),
            3 => Self::EngineKilled(node),
            4 => Self::EngineAndRunnerKilled(node),
            5 => Self::CablePulled(node),
            6 => Self::HostDiskFull,
            _ => Self::ClockMoved(random.random_range(-7200..7200)),
        }
    }

    pub fn begin(self, cluster: &mut Cluster) {
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
            Self::ClockMoved(seconds) => move_clock(seconds),
        }
    }

    pub fn end(self, cluster: &mut Cluster) {
        match self {
            Self::HostKilled => cluster.start_host(),
            Self::RunnerKilled(node) => cluster.start_runner(node, None),
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
            Self::ClockMoved(seconds) => move_clock(-seconds),
        }
    }
}

fn move_clock(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).unwrap();
}
