//! What was seen of an instance, by the runner that has it.

use serde::{Deserialize, Serialize};

/// One report about one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The newest intent the runner had acted on when it looked.
    pub generation: u64,
    pub state: Observed,
    /// The instance's SSH host key as an OpenSSH public key line, so that clients can pin it.
    #[serde(default)]
    pub ssh_host_key: Option<String>,
    /// Something that people should know while all is as wished, such as a limit that the
    /// backend would not change while the instance runs.
    #[serde(default)]
    pub warning: Option<String>,
    /// A virtual machine's address on its node.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
}

/// What the instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Observed {
    /// Nothing of it exists on the node.
    Absent,
    /// On its way up: what is being done, and how far where that is known.
    Provisioning { step: String, percent: Option<u8> },
    /// On its way up, but something outside it is in the way, such as an engine that is away. The
    /// runner goes on trying; what of it runs is not known.
    Blocked { code: FailureCode, message: String, hint: Option<String> },
    /// The agent inside answers. Times are milliseconds since 1970.
    Running { started_at_ms: i64 },
    /// Up, with every process frozen.
    Paused { started_at_ms: i64 },
    /// Not running; its disk is kept. `oom`: the kernel killed for lack of memory, and the
    /// instance ended of it.
    Stopped {
        exit_code: Option<i64>,
        finished_at_ms: i64,
        #[serde(default)]
        oom: bool,
    },
    /// It could not be brought to what was asked. Nothing of it runs.
    Failed { code: FailureCode, message: String, hint: Option<String> },
}

/// Why bringing an instance up failed, for programs to branch on.
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
    /// Nothing runs and nothing will start by itself: compute may go to others.
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
