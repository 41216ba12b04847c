//! An instance's intended state. Every change has a new generation.

use serde::{Deserialize, Serialize};

/// The state the instance should reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Running,
    /// Up, with every process frozen. It holds its resources.
    Paused,
    Stopped,
    /// As `Stopped`, without a grace period.
    Killed,
    /// Gone, with its disk. The row is deleted when the runner has proven it.
    Deleted,
}

impl Desired {
    /// Returns whether it should hold cores, memory and GPUs.
    pub fn is_up(self) -> bool {
        match self {
            Self::Running | Self::Paused => true,
            Self::Stopped | Self::Killed | Self::Deleted => false,
        }
    }
}

/// The desired state and its version.
///
/// `start_generation` is the generation of the last act that asked for a fresh start (create or
/// restart): a runner that has already done that start does not start again, so a repeated message,
/// or a runner that restarts, restarts nothing. `disk_generation` is the same for the disk: the
/// last act that replaced it (restore), 0 for the first disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub desired: Desired,
    pub generation: u64,
    pub start_generation: u64,
    #[serde(default)]
    pub disk_generation: u64,
}

impl Intent {
    /// Returns the intent of an instance that was just created.
    pub fn created() -> Self {
        Self { desired: Desired::Running, generation: 1, start_generation: 1, disk_generation: 0 }
    }

    fn next(self, desired: Desired) -> Self {
        Self { desired, generation: self.generation + 1, ..self }
    }

    #[must_use]
    pub fn stop(self) -> Self {
        self.next(Desired::Stopped)
    }

    #[must_use]
    pub fn kill(self) -> Self {
        self.next(Desired::Killed)
    }

    #[must_use]
    pub fn pause(self) -> Self {
        self.next(Desired::Paused)
    }

    /// Continues a paused instance: no fresh start.
    #[must_use]
    pub fn resume(self) -> Self {
        self.next(Desired::Running)
    }

    #[must_use]
    pub fn restart(self) -> Self {
        let generation = self.generation + 1;
        Self { start_generation: generation, ..self.next(Desired::Running) }
    }

    /// Starts afresh on another disk.
    #[must_use]
    pub fn restore(self) -> Self {
        let generation = self.generation + 1;
        Self { disk_generation: generation, ..self.restart() }
    }

    /// Keeps the desired state for a changed specification.
    #[must_use]
    pub fn update(self) -> Self {
        self.next(self.desired)
    }

    #[must_use]
    pub fn delete(self) -> Self {
        self.next(Desired::Deleted)
    }
}
