//! The public status: a pure function of the intent, the observation, and whether the node is
//! connected.
//!
//! ```text
//!  pending_approval -> assigning | rejected     assigning -> running | failed
//!  running -> paused -> running                 running|paused -> stopped | killed
//!  running|paused -> killed_oom | failed        (the instance ended unasked)
//!  stopped|killed|killed_oom|failed|running|paused -> assigning (restart, restore)
//!  stopped|killed|killed_oom|failed -> deleted (row gone)
//!  assigning|running|paused -> lost -> whatever the node reports when it is back
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::intent::{Desired, Intent};
use crate::observe::{Observation, Observed};

/// The status values of the public API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    PendingApproval,
    Rejected,
    Pending,
    Assigning,
    Running,
    Paused,
    Completed,
    Failed,
    Killed,
    KilledOom,
    Lost,
    Stopped,
}

impl Status {
    pub const ALL: [Self; 12] = [
        Self::PendingApproval,
        Self::Rejected,
        Self::Pending,
        Self::Assigning,
        Self::Running,
        Self::Paused,
        Self::Completed,
        Self::Failed,
        Self::Killed,
        Self::KilledOom,
        Self::Lost,
        Self::Stopped,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Rejected => "rejected",
            Self::Pending => "pending",
            Self::Assigning => "assigning",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::KilledOom => "killed_oom",
            Self::Lost => "lost",
            Self::Stopped => "stopped",
        }
    }

    /// Returns whether `vps list` without `--all` includes it.
    pub fn is_active(self) -> bool {
        match self {
            Self::PendingApproval
            | Self::Pending
            | Self::Assigning
            | Self::Running
            | Self::Paused
            | Self::Lost => true,
            Self::Rejected
            | Self::Completed
            | Self::Failed
            | Self::Killed
            | Self::KilledOom
            | Self::Stopped => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a status")]
pub struct UnknownStatus(String);

/// Computes the status from intent and observation. `node_seen` is false once the node has been
/// silent for longer than the configured time.
pub fn public_status(intent: &Intent, seen: Option<&Observation>, node_seen: bool) -> Status {
    let word = match seen {
        None => Status::Assigning,
        Some(seen) if seen.generation < intent.start_generation => Status::Assigning,
        Some(seen) => settled_status(intent, &seen.state),
    };
    let alive = matches!(word, Status::Assigning | Status::Running | Status::Paused);
    if alive && !node_seen { Status::Lost } else { word }
}

/// Computes the status where the observation belongs to the current start.
fn settled_status(intent: &Intent, state: &Observed) -> Status {
    match (state, intent.desired) {
        (Observed::Provisioning { .. } | Observed::Blocked { .. }, _) => Status::Assigning,
        (Observed::Running { .. }, _) => Status::Running,
        (Observed::Paused { .. }, _) => Status::Paused,
        (Observed::Stopped { oom: true, .. }, Desired::Running | Desired::Paused) => {
            Status::KilledOom
        }
        // It shut down on its own, as a machine that is powered off from inside.
        (
            Observed::Stopped { exit_code: Some(0), oom: false, .. },
            Desired::Running | Desired::Paused,
        ) => Status::Stopped,
        // It should be up and is not: its main process ended on its own.
        (Observed::Stopped { .. } | Observed::Absent, Desired::Running | Desired::Paused) => {
            Status::Failed
        }
        (Observed::Stopped { .. } | Observed::Absent, Desired::Killed) => Status::Killed,
        (Observed::Stopped { .. } | Observed::Absent, Desired::Stopped | Desired::Deleted) => {
            Status::Stopped
        }
        (Observed::Failed { .. }, _) => Status::Failed,
    }
}

/// Returns the transition under way: the intent where it differs from the observation.
pub fn transition(intent: &Intent, seen: Option<&Observation>) -> Option<&'static str> {
    if intent.desired == Desired::Deleted {
        return Some("deleting");
    }
    let settled = seen.is_some_and(|seen| seen.generation >= intent.generation);
    let at_rest = seen.is_some_and(|seen| seen.state.is_at_rest());
    match intent.desired {
        Desired::Deleted => Some("deleting"),
        Desired::Stopped | Desired::Killed if settled && at_rest => None,
        Desired::Stopped | Desired::Killed if at_rest => Some("updating"),
        Desired::Stopped => Some("stopping"),
        Desired::Killed => Some("killing"),
        Desired::Running | Desired::Paused if settled => None,
        Desired::Running | Desired::Paused if intent.generation == 1 => Some("starting"),
        Desired::Running if intent.disk_generation == intent.generation => Some("restoring"),
        Desired::Running if intent.start_generation == intent.generation => Some("restarting"),
        Desired::Running if seen.is_some_and(|seen| is_paused(&seen.state)) => Some("resuming"),
        Desired::Paused if seen.is_some_and(|seen| !is_paused(&seen.state)) => Some("pausing"),
        Desired::Running | Desired::Paused => Some("updating"),
    }
}

fn is_paused(state: &Observed) -> bool {
    matches!(state, Observed::Paused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(generation: u64, state: Observed) -> Option<Observation> {
        Some(Observation { generation, state, ssh_host_key: None, warning: None, address: None })
    }

    #[test]
    fn every_status_round_trips() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{status}\""));
        }
    }

    #[test]
    fn observation_from_before_a_restart_is_ignored() {
        let stopped =
            seen(2, Observed::Stopped { exit_code: Some(0), finished_at_ms: 5, oom: false });
        let intent = Intent::created().stop();
        assert_eq!(public_status(&intent, stopped.as_ref(), true), Status::Stopped);
        assert_eq!(public_status(&intent.restart(), stopped.as_ref(), true), Status::Assigning);
    }

    #[test]
    fn stopping_is_running_until_the_end_is_proven() {
        let running = seen(1, Observed::Running { started_at_ms: 1 });
        let intent = Intent::created().stop();
        assert_eq!(public_status(&intent, running.as_ref(), true), Status::Running);
        assert_eq!(transition(&intent, running.as_ref()), Some("stopping"));
    }

    #[test]
    fn silent_node_loses_running_instances_only() {
        let running = seen(1, Observed::Running { started_at_ms: 1 });
        assert_eq!(public_status(&Intent::created(), running.as_ref(), false), Status::Lost);
        let stopped = seen(2, Observed::Stopped { exit_code: None, finished_at_ms: 1, oom: false });
        let intent = Intent::created().stop();
        assert_eq!(public_status(&intent, stopped.as_ref(), false), Status::Stopped);
    }

    fn stopped(generation: u64, oom: bool) -> Option<Observation> {
        seen(generation, Observed::Stopped { exit_code: Some(137), finished_at_ms: 5, oom })
    }

    #[test]
    fn status_of_an_end_depends_on_exit_and_intent() {
        let running = Intent::created();
        let word =
            |intent: &Intent, seen: Option<Observation>| public_status(intent, seen.as_ref(), true);
        assert_eq!(word(&running, stopped(1, false)), Status::Failed);
        assert_eq!(word(&running, stopped(1, true)), Status::KilledOom);
        assert_eq!(word(&running.pause(), stopped(2, true)), Status::KilledOom);
        assert_eq!(word(&running.stop(), stopped(2, false)), Status::Stopped);
        assert_eq!(word(&running.kill(), stopped(2, false)), Status::Killed);
        assert_eq!(
            word(&running.kill(), seen(1, Observed::Running { started_at_ms: 1 })),
            Status::Running
        );
        let paused = seen(2, Observed::Paused { started_at_ms: 1 });
        assert_eq!(word(&running.pause(), paused.clone()), Status::Paused);
        assert_eq!(public_status(&running.pause(), paused.as_ref(), false), Status::Lost);
    }

    #[test]
    fn transition_is_set_until_observed() {
        let intent = Intent::created();
        let up = |generation| seen(generation, Observed::Running { started_at_ms: 1 });
        let paused = |generation| seen(generation, Observed::Paused { started_at_ms: 1 });
        let word = |intent: Intent, seen: Option<Observation>| transition(&intent, seen.as_ref());
        assert_eq!(word(intent, None), Some("starting"));
        assert_eq!(word(intent.pause(), up(1)), Some("pausing"));
        assert_eq!(word(intent.pause(), paused(2)), None);
        assert_eq!(word(intent.pause().resume(), paused(2)), Some("resuming"));
        assert_eq!(word(intent.kill(), up(1)), Some("killing"));
        assert_eq!(word(intent.update(), up(1)), Some("updating"));
        assert_eq!(word(intent.pause().update(), paused(2)), Some("updating"));
        assert_eq!(word(intent.stop().update(), stopped(2, false)), Some("updating"));
        assert_eq!(word(intent.restore(), up(1)), Some("restoring"));
        assert_eq!(word(intent.restart(), up(1)), Some("restarting"));
    }
}
