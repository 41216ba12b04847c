//! What to do next for one instance: a pure function of the ledger and of what the backend shows.
//!
//! ```text
//!  desired running:   nothing --Create--> created --Start--> running --AwaitAgent--> running, ready
//!                     running, older start   --Stop--> stopped --Start--> ...     (restart: same disk)
//!                     ended by itself        --> rest as stopped (or failed, if it never was ready)
//!                     machine rebooted       --Start--> ...
//!                     failed at this start   --Stop--> rest as failed
//!  desired stopped:   running --Stop--> rest as stopped
//!  desired deleted:   anything --Remove--> nothing --Forget--> rest as absent
//! ```
//!
//! Every step is written down before or after it is done in such a way that a crash between any
//! two writes leads to the same end (see [`StartMark`]). The property tests below crash everywhere.

use kohakuriver_model::{Desired, FailureCode, Intent, Observed};
use serde::{Deserialize, Serialize};

/// What the backend has of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub life: Life,
    /// The backend's own mark of the latest start, `None` before the first. Only compared.
    pub started: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Created,
    Running { started_at_ms: i64 },
    Ended { exit_code: Option<i64>, finished_at_ms: i64 },
}

impl Found {
    pub fn is_running(&self) -> bool {
        matches!(self.life, Life::Running { .. })
    }
}

/// How far the newest start came.
///
/// `Intended` is written before the backend is asked, with the start mark seen then: after a
/// crash a differing mark proves that the start happened, so it is not done twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mark")]
pub enum StartMark {
    #[default]
    Never,
    Intended {
        generation: u64,
        boot: String,
        before: Option<String>,
    },
    /// `ready`: the agent has answered once since.
    Done {
        generation: u64,
        boot: String,
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
pub struct View<'a> {
    pub intent: Intent,
    pub mark: &'a StartMark,
    pub failure: Option<&'a Failure>,
    /// When the order came, for what was never started and so never finished.
    pub ordered_at_ms: i64,
    pub boot: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Create,
    Start {
        before: Option<String>,
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
    Stop,
    Remove,
    Forget,
    Rest(Observed),
}

/// Decides on the next step.
pub fn plan(view: &View<'_>, found: Option<&Found>) -> Step {
    match view.intent.desired {
        Desired::Deleted if found.is_some() => Step::Remove,
        Desired::Deleted => Step::Forget,
        Desired::Stopped => stopped(view, found),
        Desired::Running => running(view, found),
    }
}

fn stopped(view: &View<'_>, found: Option<&Found>) -> Step {
    match found.map(|found| &found.life) {
        Some(Life::Running { .. }) => Step::Stop,
        Some(Life::Ended { exit_code, finished_at_ms }) => {
            Step::Rest(Observed::Stopped { exit_code: *exit_code, finished_at_ms: *finished_at_ms })
        }
        None if *view.mark != StartMark::Never => Step::Rest(disappeared()),
        Some(Life::Created) | None => {
            Step::Rest(Observed::Stopped { exit_code: None, finished_at_ms: view.ordered_at_ms })
        }
    }
}

fn running(view: &View<'_>, found: Option<&Found>) -> Step {
    if let Some(failure) = view.failure
        && failure.start_generation == view.intent.start_generation
    {
        return match found {
            Some(found) if found.is_running() => Step::Stop,
            Some(_) if failure.at_create => Step::Remove,
            Some(_) | None => Step::Rest(failure.observed()),
        };
    }
    let Some(found) = found else {
        return match view.mark {
            StartMark::Never => Step::Create,
            // An empty disk in place of the lost one would look like the same machine.
            StartMark::Intended { .. } | StartMark::Done { .. } => Step::Rest(disappeared()),
        };
    };
    match view.mark {
        StartMark::Intended { generation, before, .. }
            if *generation == view.intent.start_generation && *before != found.started =>
        {
            Step::ConfirmStart
        }
        StartMark::Done { generation, boot, ready }
            if *generation >= view.intent.start_generation =>
        {
            started(view, found, boot, *ready)
        }
        StartMark::Never | StartMark::Intended { .. } | StartMark::Done { .. } => fresh(found),
    }
}

/// A start is due: from standstill, so that a restart is one.
fn fresh(found: &Found) -> Step {
    if found.is_running() { Step::Stop } else { Step::Start { before: found.started.clone() } }
}

fn started(view: &View<'_>, found: &Found, boot: &str, ready: bool) -> Step {
    match found.life {
        Life::Running { started_at_ms } if ready => Step::Rest(Observed::Running { started_at_ms }),
        Life::Running { started_at_ms } => Step::AwaitAgent { started_at_ms },
        Life::Created | Life::Ended { .. } if boot != view.boot => fresh(found),
        Life::Created => fresh(found),
        Life::Ended { exit_code, finished_at_ms } if ready => {
            Step::Rest(Observed::Stopped { exit_code, finished_at_ms })
        }
        Life::Ended { exit_code, .. } => Step::RecordEarlyEnd { exit_code },
    }
}

fn disappeared() -> Observed {
    Observed::Failed {
        code: FailureCode::Disappeared,
        message: "its container was removed by somebody else; its disk is gone".to_owned(),
        hint: Some("delete it and create it again".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
