//! Which acts are possible on an instance in which state. Pure, so that every pair can be tested.

use crate::intent::{Desired, Intent};
use crate::spec::BackendKind;
use crate::status::Status;

/// An act that a caller requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Stop,
    /// Ends it without a grace period; also one that does not stop.
    Kill,
    Restart,
    /// Starts again on the disk of a snapshot. The current content of the disk is lost.
    Restore,
    Pause,
    Resume,
    /// Changes limits, with the same desired state.
    Update,
    /// Removes keys, with the same desired state. Also possible while it is being deleted: an
    /// instance too large for its node can be reduced in every state.
    RemoveKeys,
    /// `force` deletes a running instance without a stop in between.
    Delete {
        force: bool,
    },
}

impl Act {
    /// Returns the command's name.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Restore => "restore",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update | Self::RemoveKeys => "update",
            Self::Delete { .. } => "delete",
        }
    }
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Apply this new intent.
    Change(Intent),
    /// The instance is in this state, or on its way there; repeating is harmless.
    Already,
    /// Not possible in this state; these commands are.
    Refused { possible: &'static [&'static str] },
    /// Not possible in any state: the backend does not support it.
    Unsupported,
}

/// Decides on one act.
pub fn admit(act: Act, backend: BackendKind, intent: &Intent, status: Status) -> Admission {
    let refused = Admission::Refused { possible: possible(backend, intent, status) };
    if intent.desired == Desired::Deleted {
        return match act {
            Act::Delete { .. } => Admission::Already,
            Act::RemoveKeys => Admission::Change(intent.update()),
            Act::Stop
            | Act::Kill
            | Act::Restart
            | Act::Restore
            | Act::Pause
            | Act::Resume
            | Act::Update => refused,
        };
    }
    if backend == BackendKind::Qemu && matches!(act, Act::Pause | Act::Resume) {
        return Admission::Unsupported;
    }
    let change = Admission::Change;
    match (act, Phase::of(status)) {
        (Act::Stop, Phase::Up) if matches!(intent.desired, Desired::Stopped | Desired::Killed) => {
            Admission::Already
        }
        (Act::Stop, Phase::Rest) if intent.desired == Desired::Stopped => Admission::Already,
        (Act::Stop, Phase::Up) => change(intent.stop()),

        (Act::Kill, Phase::Up | Phase::Rest) if intent.desired == Desired::Killed => {
            Admission::Already
        }
        (Act::Kill, Phase::Up) => change(intent.kill()),

        // A start in progress is as fresh as another one would be.
        (Act::Restart, Phase::Up)
            if matches!(status, Status::Assigning | Status::Pending)
                && intent.desired == Desired::Running =>
        {
            Admission::Already
        }
        (Act::Restart, Phase::Up | Phase::Rest) => change(intent.restart()),
        (Act::Restore, Phase::Up | Phase::Rest) => change(intent.restore()),

        (Act::Pause, Phase::Up) if intent.desired == Desired::Paused => Admission::Already,
        (Act::Pause, Phase::Up)
            if status == Status::Running && intent.desired == Desired::Running =>
        {
            change(intent.pause())
        }
        (Act::Resume, Phase::Up) if intent.desired == Desired::Paused => change(intent.resume()),
        (Act::Resume, Phase::Up)
            if intent.desired == Desired::Running
                && matches!(status, Status::Running | Status::Paused) =>
        {
            Admission::Already
        }

        (Act::Update | Act::RemoveKeys, Phase::Up | Phase::Rest) => change(intent.update()),

        (Act::Delete { .. }, Phase::Rest | Phase::Over) => change(intent.delete()),
        (Act::Delete { force: true }, Phase::Up | Phase::Waiting) => change(intent.delete()),

        (Act::Stop | Act::Kill | Act::Pause | Act::Resume, Phase::Up | Phase::Rest)
        | (Act::Delete { force: false }, Phase::Up | Phase::Waiting)
        | (
            Act::Stop
            | Act::Kill
            | Act::Restart
            | Act::Restore
            | Act::Pause
            | Act::Resume
            | Act::Update
            | Act::RemoveKeys,
            Phase::Waiting | Phase::Over,
        ) => refused,
    }
}

/// The states, as far as acts distinguish them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not yet approved.
    Waiting,
    /// Running, possibly running, or starting.
    Up,
    /// Has a disk and does not run.
    Rest,
    /// Can never run.
    Over,
}

impl Phase {
    fn of(status: Status) -> Self {
        match status {
            Status::PendingApproval => Self::Waiting,
            Status::Pending
            | Status::Assigning
            | Status::Running
            | Status::Paused
            | Status::Lost => Self::Up,
            Status::Failed | Status::Killed | Status::KilledOom | Status::Stopped => Self::Rest,
            Status::Rejected | Status::Completed => Self::Over,
        }
    }
}

/// Returns the commands that are possible in a state, for error messages.
pub fn possible(backend: BackendKind, intent: &Intent, status: Status) -> &'static [&'static str] {
    if intent.desired == Desired::Deleted {
        return &[];
    }
    let leaving = matches!(intent.desired, Desired::Stopped | Desired::Killed);
    match status {
        Status::PendingApproval => &["delete --force"],
        Status::Rejected | Status::Completed => &["delete"],
        Status::Running | Status::Paused | Status::Lost | Status::Pending | Status::Assigning
            if leaving =>
        {
            &["kill", "restart", "delete --force"]
        }
        Status::Pending | Status::Assigning => &["stop", "kill", "delete --force"],
        Status::Running | Status::Paused if backend == BackendKind::Qemu => {
            &["stop", "restart", "kill", "delete --force"]
        }
        Status::Running => &["stop", "restart", "pause", "kill", "delete --force"],
        Status::Paused => &["resume", "stop", "restart", "kill", "delete --force"],
        Status::Lost => &["stop", "restart", "kill", "delete --force"],
        Status::Failed | Status::Killed | Status::KilledOom | Status::Stopped => {
            &["restart", "delete"]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_act() -> impl Strategy<Value = Act> {
        prop_oneof![
            Just(Act::Stop),
            Just(Act::Kill),
            Just(Act::Restart),
            Just(Act::Restore),
            Just(Act::Pause),
            Just(Act::Resume),
            Just(Act::Update),
            Just(Act::RemoveKeys),
            any::<bool>().prop_map(|force| Act::Delete { force })
        ]
    }

    fn any_backend() -> impl Strategy<Value = BackendKind> {
        prop_oneof![Just(BackendKind::Docker), Just(BackendKind::Qemu)]
    }

    fn any_status() -> impl Strategy<Value = Status> {
        (0..Status::ALL.len()).prop_map(|index| Status::ALL[index])
    }

    proptest! {
        #[test]
        fn generations_only_grow_and_deleted_is_final(
            acts in proptest::collection::vec((any_act(), any_backend(), any_status()), 1..40)
        ) {
            let mut intent = Intent::created();
            for (act, backend, status) in acts {
                if let Admission::Change(next) = admit(act, backend, &intent, status) {
                    prop_assert_eq!(next.generation, intent.generation + 1);
                    prop_assert!(next.start_generation >= intent.start_generation);
                    prop_assert!(next.start_generation <= next.generation);
                    prop_assert!(next.disk_generation >= intent.disk_generation);
                    prop_assert!(next.disk_generation <= next.start_generation);
                    if intent.desired == Desired::Deleted {
                        prop_assert_eq!((act, next.desired), (Act::RemoveKeys, Desired::Deleted));
                    }
                    intent = next;
                }
            }
        }

        #[test]
        fn repeated_act_changes_nothing_or_is_refused(
            act in any_act(), backend in any_backend(), status in any_status()
        ) {
            let first = admit(act, backend, &Intent::created(), status);
            let fresh = matches!(
                act,
                Act::Restart | Act::Restore | Act::Update | Act::RemoveKeys
            );
            if let (Admission::Change(next), false) = (first, fresh) {
                prop_assert_eq!(admit(act, backend, &next, status), Admission::Already);
            }
        }

        #[test]
        fn vm_differs_from_container_only_in_pause(
            act in any_act(), status in any_status()
        ) {
            let intent = Intent::created();
            let machine = admit(act, BackendKind::Qemu, &intent, status);
            if matches!(act, Act::Pause | Act::Resume) {
                prop_assert_eq!(machine, Admission::Unsupported);
            } else if let Admission::Refused { possible } = machine {
                prop_assert!(!possible.contains(&"pause") && !possible.contains(&"resume"));
            } else {
                prop_assert_eq!(machine, admit(act, BackendKind::Docker, &intent, status));
            }
        }

        #[test]
        fn acts_listed_as_possible_are_admitted(
            backend in any_backend(), status in any_status(), paused in any::<bool>()
        ) {
            let mut intent = Intent::created();
            if paused || status == Status::Paused {
                intent = intent.pause();
            }
            for text in possible(backend, &intent, status) {
                let act = match *text {
                    "stop" => Act::Stop,
                    "kill" => Act::Kill,
                    "restart" => Act::Restart,
                    "pause" => Act::Pause,
                    "resume" => Act::Resume,
                    "delete" => Act::Delete { force: false },
                    "delete --force" => Act::Delete { force: true },
                    other => panic!("{other} is no command"),
                };
                let answer = admit(act, backend, &intent, status);
                let admitted = matches!(answer, Admission::Change(_) | Admission::Already);
                prop_assert!(admitted, "{} from {}", text, status);
            }
        }
    }

    /// The documented diagram, and arrows that must not exist.
    #[test]
    fn documented_transitions_exist_and_no_others() {
        let running = Intent::created();
        let change =
            |act, intent: &Intent, status| match admit(act, BackendKind::Docker, intent, status) {
                Admission::Change(next) => Some(next.desired),
                Admission::Already | Admission::Refused { .. } | Admission::Unsupported => None,
            };
        assert_eq!(change(Act::Stop, &running, Status::Running), Some(Desired::Stopped));
        assert_eq!(change(Act::Pause, &running, Status::Running), Some(Desired::Paused));
        assert_eq!(change(Act::Kill, &running, Status::Running), Some(Desired::Killed));
        assert_eq!(change(Act::Resume, &running.pause(), Status::Paused), Some(Desired::Running));
        assert_eq!(change(Act::Restart, &running.stop(), Status::Stopped), Some(Desired::Running));
        let delete = Act::Delete { force: false };
        assert_eq!(change(delete, &running.stop(), Status::Stopped), Some(Desired::Deleted));
        assert_eq!(change(delete, &running, Status::Running), None);
        assert_eq!(change(Act::Pause, &running.stop(), Status::Stopped), None);
        assert_eq!(change(Act::Pause, &running, Status::Lost), None);
        assert_eq!(change(Act::Resume, &running.stop(), Status::Stopped), None);
        assert_eq!(change(Act::Stop, &running, Status::Failed), None);
        // An instance that does not stop can be killed.
        assert_eq!(change(Act::Kill, &running.stop(), Status::Running), Some(Desired::Killed));
    }
}
