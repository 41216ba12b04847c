//! The runner's observation of an instance.

use serde::{Deserialize, Serialize};

/// A report about an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The newest intent that the runner had applied at the time.
    pub generation: u64,
    pub state: Observed,
    /// The instance's SSH host key as an OpenSSH public key line, so that clients can pin it.
    #[serde(default)]
    pub ssh_host_key: Option<String>,
    /// A warning while everything is as intended, such as a limit that the backend cannot change
    /// while the instance runs.
    #[serde(default)]
    pub warning: Option<String>,
    /// A virtual machine's address on its node.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Observed {
    /// Nothing of it exists on the node.
    Absent,
    /// Starting: the current step, and its progress where known.
    Provisioning { step: String, percent: Option<u8> },
    /// Starting, but blocked by something outside it, such as an unavailable engine. The runner
    /// keeps trying; which parts of it run is unknown.
    Blocked { code: FailureCode, message: String, hint: Option<String> },
    /// The agent inside responds. Times are milliseconds since 1970.
    Running { started_at_ms: i64 },
    /// Up, with every process frozen.
    Paused { started_at_ms: i64 },
    /// Not running; its disk is retained. `oom`: it ended because the kernel killed a process for
    /// lack of memory.
    Stopped {
        exit_code: Option<i64>,
        finished_at_ms: i64,
        #[serde(default)]
        oom: bool,
    },
    /// The intent could not be reached. Nothing of it runs.
    Failed { code: FailureCode, message: String, hint: Option<String> },
}

/// The reason why a start failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    ImageNotFound,
    ImageUnavailable,
    EnvironmentNotFound,
    EngineUnavailable,
    DiskFull,
    StartRefused,
    AgentSilent,
    Disappeared,
    SnapshotNotFound,
    GpuUnavailable,
    Internal,
}

impl Observed {
    /// Returns whether nothing runs or will start on its own: compute may be allocated to others.
    pub fn is_at_rest(&self) -> bool {
        match self {
            Self::Absent | Self::Stopped { .. } | Self::Failed { .. } => true,
            Self::Provisioning { .. }
            | Self::Blocked { .. }
            | Self::Running { .. }
            | Self::Paused { .. } => false,
        }
    }
}
