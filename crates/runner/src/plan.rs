//! Decides the next step of one instance: a pure function of the ledger and of the backend's state.
//!
//! ```text
//!  desired running:   nothing --Create--> created --Start--> running --AwaitAgent--> running, ready
//!                     running, older start   --Stop--> stopped --Start--> ...     (restart: same disk)
//!                     on an older disk       --Stop--> stopped --Replace--> nothing --Create--> ...
//!                     paused --Resume--> running             other limits --Resize--> as before
//!                     out of memory --RecordOom--> --Kill--> rest as stopped, oom
//!                     ended by itself        --> rest as stopped --SettleEnd--> stays so for good
//!                     machine or engine was restarted --Start--> ...       (unless its end is settled)
//!                     failed at this start   --Stop--> rest as failed
//!  desired paused:    as running, then --Pause--> rest as paused
//!  desired stopped:   running --Stop--> ended [--SnapshotOnStop-->] rest as stopped
//!  desired killed:    running --Kill--> rest as stopped
//!  desired deleted:   anything --Remove--> nothing --Forget--> rest as absent
//! ```
//!
//! Every step is written down before or after it is done in such a way that a crash between any
//! two writes leads to the same end (see [`StartRecord`]). The property tests below crash everywhere.

use kohakuriver_model::{Desired, FailureCode, Intent, Observed, OnOom};
use serde::{Deserialize, Serialize};

/// An end is for good when its engine has outlived it by this. Before, the engine itself may be
/// on its way down and have taken the instance along.
const SETTLE_MS: i64 = 10_000;
/// The exit code of a process killed with SIGKILL.
const KILLED_EXIT_CODE: i64 = 137;

/// The state of an instance in its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendState {
    pub life: Lifecycle,
    /// The backend's own mark of the latest start, `None` before the first. Only compared.
    pub started: Option<String>,
    /// The `disk_generation` it was made for.
    pub disk: u64,
    /// The kernel killed a process of it for lack of memory since its start.
    pub oom: bool,
    pub limits: Limits,
    /// Which run of machine and engine this is; what ended in another one did not end by itself.
    pub epoch: String,
}

/// Limits as the backend applies them: no limit is what the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub cores: u32,
    pub memory_bytes: u64,
    pub pids: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    Created,
    Running { started_at_ms: i64 },
    Paused { started_at_ms: i64 },
    Ended { exit_code: Option<i64>, finished_at_ms: i64 },
}

impl BackendState {
    pub fn is_running(&self) -> bool {
        matches!(self.life, Lifecycle::Running { .. })
    }
}

/// How far the newest start came.
///
/// `Intended` is written before the backend is asked, with the start mark seen then: after a
/// crash a differing mark proves that the start happened, so it is not done twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mark")]
pub enum StartRecord {
    #[default]
    Never,
    Intended {
        generation: u64,
        #[serde(alias = "boot")]
        epoch: String,
        before: Option<String>,
    },
    /// `ready`: the agent has answered once since.
    Done {
        generation: u64,
        #[serde(alias = "boot")]
        epoch: String,
        ready: bool,
    },
}

/// A start that could not be brought to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The start it belongs to; a restart is a new one.
    pub start_generation: u64,
    pub code: FailureCode,
    pub message: String,
    pub hint: Option<String>,
    /// Nothing was ever started, so what was made of it may go.
    pub at_create: bool,
}

impl Failure {
    fn observed(&self) -> Observed {
        Observed::Failed { code: self.code, message: self.message.clone(), hint: self.hint.clone() }
    }
}

/// The ledger's part of the picture.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    pub intent: Intent,
    pub mark: &'a StartRecord,
    pub failure: Option<&'a Failure>,
    /// The disk that was made last.
    pub disk: Option<u64>,
    /// The start that ran out of memory.
    pub oom: Option<u64>,
    pub on_oom: OnOom,
    /// The start whose end is for good.
    pub exit_is_final: Option<&'a str>,
    pub wanted: Limits,
    /// The backend has refused these limits while it runs.
    pub resize_refused: bool,
    pub snapshot_on_stop: bool,
    /// The start whose stop was snapshotted, or could not be.
    pub snapshotted: Option<&'a str>,
    /// When the order came, for what was never started and so never finished.
    pub ordered_at_ms: i64,
    pub now_ms: i64,
}

impl PlanInput<'_> {
    fn disk_due(&self) -> bool {
        self.disk.is_none_or(|disk| disk < self.intent.disk_generation)
    }

    fn resize_due(&self, found: &BackendState) -> bool {
        found.limits != self.wanted
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    /// Gives up the disk for the one that was asked for, once that is known to be there.
    Replace,
    Start {
        before: Option<String>,
        epoch: String,
    },
    /// The start happened, and the runner ended before it wrote so.
    ConfirmStart,
    AwaitAgent {
        started_at_ms: i64,
    },
    /// It ended before its agent answered: record why.
    RecordEarlyEnd {
        exit_code: Option<i64>,
    },
    RecordOom,
    SettleEnd,
    Pause,
    Resume,
    Resize,
    Stop,
    Kill,
    SnapshotOnStop,
    Remove,
    Forget,
    Settle(Observed),
}

/// Decides on the next step.
pub fn plan(view: &PlanInput<'_>, found: Option<&BackendState>) -> Step {
    match view.intent.desired {
        Desired::Deleted if found.is_some() => Step::Remove,
        Desired::Deleted => Step::Forget,
        Desired::Stopped => down(view, found, Step::Stop),
        Desired::Killed => down(view, found, Step::Kill),
        Desired::Running | Desired::Paused => up(view, found),
    }
}

fn down(view: &PlanInput<'_>, found: Option<&BackendState>, end: Step) -> Step {
    let never =
        Observed::Stopped { exit_code: None, finished_at_ms: view.ordered_at_ms, oom: false };
    let Some(found) = found else {
        return Step::Settle(if view.disk_due() { never } else { disappeared() });
    };
    match found.life {
        // Frozen processes can neither end nor be ended.
        Lifecycle::Paused { .. } => Step::Resume,
        Lifecycle::Running { .. } => end,
        Lifecycle::Created | Lifecycle::Ended { .. } if view.resize_due(found) => Step::Resize,
        Lifecycle::Ended { .. }
            if view.snapshot_on_stop
                && view.intent.desired == Desired::Stopped
                && view.snapshotted != found.started.as_deref() =>
        {
            Step::SnapshotOnStop
        }
        Lifecycle::Ended { exit_code, finished_at_ms } => {
            Step::Settle(Observed::Stopped { exit_code, finished_at_ms, oom: false })
        }
        Lifecycle::Created => Step::Settle(never),
    }
}

fn up(view: &PlanInput<'_>, found: Option<&BackendState>) -> Step {
    let start = view.intent.start_generation;
    if let Some(failure) = view.failure.filter(|failure| failure.start_generation == start) {
        return match found.map(|found| &found.life) {
            Some(Lifecycle::Paused { .. }) => Step::Resume,
            Some(Lifecycle::Running { .. }) => Step::Stop,
            Some(_) if failure.at_create => Step::Remove,
            Some(_) | None => Step::Settle(failure.observed()),
        };
    }
    let Some(found) = found else {
        // An empty disk in place of the lost one would look like the same machine.
        return if view.disk_due() { Step::Create } else { Step::Settle(disappeared()) };
    };
    if found.disk < view.intent.disk_generation {
        return match found.life {
            Lifecycle::Paused { .. } => Step::Resume,
            Lifecycle::Running { .. } => Step::Stop,
            Lifecycle::Created | Lifecycle::Ended { .. } => Step::Replace,
        };
    }
    if view.oom == Some(start) {
        return match found.life {
            Lifecycle::Paused { .. } => Step::Resume,
            Lifecycle::Running { .. } => Step::Kill,
            Lifecycle::Created => fresh(view, found),
            Lifecycle::Ended { exit_code, finished_at_ms } => {
                Step::Settle(Observed::Stopped { exit_code, finished_at_ms, oom: true })
            }
        };
    }
    match view.mark {
        StartRecord::Intended { generation, before, .. }
            if *generation == start && *before != found.started =>
        {
            Step::ConfirmStart
        }
        StartRecord::Done { generation, epoch, ready } if *generation >= start => {
            started(view, found, epoch, *ready)
        }
        StartRecord::Never | StartRecord::Intended { .. } | StartRecord::Done { .. } => {
            fresh(view, found)
        }
    }
}

/// A start is due: from standstill, so that a restart is one.
fn fresh(view: &PlanInput<'_>, found: &BackendState) -> Step {
    match found.life {
        Lifecycle::Paused { .. } => Step::Resume,
        Lifecycle::Running { .. } => Step::Stop,
        Lifecycle::Created | Lifecycle::Ended { .. } if view.resize_due(found) => Step::Resize,
        Lifecycle::Created | Lifecycle::Ended { .. } => {
            Step::Start { before: found.started.clone(), epoch: found.epoch.clone() }
        }
    }
}

fn started(view: &PlanInput<'_>, found: &BackendState, epoch: &str, ready: bool) -> Step {
    let paused = view.intent.desired == Desired::Paused;
    match found.life {
        Lifecycle::Running { .. } if found.oom && view.on_oom == OnOom::End => Step::RecordOom,
        Lifecycle::Running { started_at_ms } if !ready => Step::AwaitAgent { started_at_ms },
        Lifecycle::Paused { .. } if !ready => Step::Resume,
        Lifecycle::Running { .. } | Lifecycle::Paused { .. }
            if view.resize_due(found) && !view.resize_refused =>
        {
            Step::Resize
        }
        Lifecycle::Running { .. } if paused => Step::Pause,
        Lifecycle::Running { started_at_ms } => Step::Settle(Observed::Running { started_at_ms }),
        Lifecycle::Paused { started_at_ms } if paused => {
            Step::Settle(Observed::Paused { started_at_ms })
        }
        Lifecycle::Paused { .. } => Step::Resume,
        Lifecycle::Created => fresh(view, found),
        Lifecycle::Ended { .. }
            if epoch != found.epoch && view.exit_is_final != found.started.as_deref() =>
        {
            fresh(view, found)
        }
        Lifecycle::Ended { exit_code: Some(KILLED_EXIT_CODE), .. } if found.oom => Step::RecordOom,
        Lifecycle::Ended { exit_code, .. } if !ready => Step::RecordEarlyEnd { exit_code },
        Lifecycle::Ended { finished_at_ms, .. }
            if view.exit_is_final != found.started.as_deref()
                && view.now_ms - finished_at_ms >= SETTLE_MS =>
        {
            Step::SettleEnd
        }
        Lifecycle::Ended { exit_code, finished_at_ms } => {
            Step::Settle(Observed::Stopped { exit_code, finished_at_ms, oom: false })
        }
    }
}

fn disappeared() -> Observed {
    Observed::Failed {
        code: FailureCode::Disappeared,
        message: "it was removed by somebody else; its disk is gone".to_owned(),
        hint: Some("restore a snapshot of it, or delete it and create it again".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
