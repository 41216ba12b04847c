//! What an instance should be. People change it; every change has a new generation.

use serde::{Deserialize, Serialize};

/// Where the instance should end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Running,
    Stopped,
    /// Gone, with its disk. The row goes when the runner has proven it.
    Deleted,
}

/// The wish and its version.
///
/// `start_generation` is the generation of the last act that asked for a fresh start (create or
/// restart): a runner that has already started that one does not start again, so a message that
/// arrives twice, or a runner that restarts, restarts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub desired: Desired,
    pub generation: u64,
    pub start_generation: u64,
}

impl Intent {
    /// The intent of an instance that was just created.
    pub fn created() -> Self {
        Self { desired: Desired::Running, generation: 1, start_generation: 1 }
    }

    #[must_use]
    pub fn stop(self) -> Self {
        Self { desired: Desired::Stopped, generation: self.generation + 1, ..self }
    }

    #[must_use]
    pub fn restart(self) -> Self {
        let generation = self.generation + 1;
        Self { desired: Desired::Running, generation, start_generation: generation }
    }

    #[must_use]
    pub fn delete(self) -> Self {
        Self { desired: Desired::Deleted, generation: self.generation + 1, ..self }
    }
}
