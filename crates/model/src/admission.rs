//! What may be asked of an instance in which state. Pure, so that the answer can be tested for
//! every pair.

use crate::intent::{Desired, Intent};
use crate::status::Status;

/// What a person asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Stop,
    Restart,
    /// `force` deletes what still runs, without a stop in between.
    Delete {
        force: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Do it: this is the new intent.
    Change(Intent),
    /// It is so already, or on its way; saying it again is harmless.
    Already,
    /// Not from this state; these are the commands that work now.
    Refused { possible: &'static [&'static str] },
}

/// Decides on one act.
pub fn admit(act: Act, intent: &Intent, status: Status) -> Admission {
    if intent.desired == Desired::Deleted {
        return match act {
            Act::Delete { .. } => Admission::Already,
            Act::Stop | Act::Restart => Admission::Refused { possible: &[] },
        };
    }
    match act {
        Act::Stop => stop(intent, status),
        Act::Restart => restart(intent, status),
        Act::Delete { force } => delete(intent, status, force),
    }
}

/// The commands that make sense in a state, for error messages.
pub fn possible(status: Status) -> &'static [&'static str] {
    match status {
        Status::PendingApproval | Status::Rejected | Status::Completed => &["delete"],
        Status::Pending | Status::Assigning => &["stop", "delete --force"],
        Status::Running | Status::Paused | Status::Lost => &["stop", "restart", "delete --force"],
        Status::Failed | Status::Killed | Status::KilledOom | Status::Stopped => {
            &["restart", "delete"]
        }
    }
}

fn stop(intent: &Intent, status: Status) -> Admission {
    if intent.desired == Desired::Stopped {
        return Admission::Already;
    }
    match status {
        Status::Assigning | Status::Pending | Status::Running | Status::Paused | Status::Lost => {
            Admission::Change(intent.stop())
        }
        Status::PendingApproval
        | Status::Rejected
        | Status::Completed
        | Status::Failed
        | Status::Killed
        | Status::KilledOom
        | Status::Stopped => Admission::Refused { possible: possible(status) },
    }
}

fn restart(intent: &Intent, status: Status) -> Admission {
    match status {
        Status::Assigning | Status::Pending => Admission::Already,
        Status::Running
        | Status::Paused
        | Status::Lost
        | Status::Failed
        | Status::Killed
        | Status::KilledOom
        | Status::Stopped => Admission::Change(intent.restart()),
        Status::PendingApproval | Status::Rejected | Status::Completed => {
            Admission::Refused { possible: possible(status) }
        }
    }
}

fn delete(intent: &Intent, status: Status, force: bool) -> Admission {
    match status {
        Status::Rejected
        | Status::Completed
        | Status::Failed
        | Status::Killed
        | Status::KilledOom
        | Status::Stopped => Admission::Change(intent.delete()),
        Status::PendingApproval
        | Status::Pending
        | Status::Assigning
        | Status::Running
        | Status::Paused
        | Status::Lost
            if force =>
        {
            Admission::Change(intent.delete())
        }
        Status::PendingApproval
        | Status::Pending
        | Status::Assigning
        | Status::Running
        | Status::Paused
        | Status::Lost => Admission::Refused { possible: possible(status) },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_act() -> impl Strategy<Value = Act> {
        prop_oneof![
            Just(Act::Stop),
            Just(Act::Restart),
            any::<bool>().prop_map(|force| Act::Delete { force })
        ]
    }

    fn any_status() -> impl Strategy<Value = Status> {
        (0..Status::ALL.len()).prop_map(|index| Status::ALL[index])
    }

    proptest! {
        #[test]
        fn generations_only_grow_and_nothing_leaves_deleted(
            acts in proptest::collection::vec((any_act(), any_status()), 1..40)
        ) {
            let mut intent = Intent::created();
            for (act, status) in acts {
                if let Admission::Change(next) = admit(act, &intent, status) {
                    prop_assert_eq!(next.generation, intent.generation + 1);
                    prop_assert!(next.start_generation >= intent.start_generation);
                    prop_assert!(next.start_generation <= next.generation);
                    prop_assert_ne!(intent.desired, Desired::Deleted);
                    intent = next;
                }
            }
        }

        #[test]
        fn asking_again_at_once_changes_nothing_or_is_told_why(act in any_act(), status in any_status()) {
            if let Admission::Change(next) = admit(act, &Intent::created(), status)
                && act != Act::Restart
            {
                prop_assert_eq!(admit(act, &next, status), Admission::Already);
            }
        }
    }

    #[test]
    fn a_running_vps_is_not_deleted_without_force() {
        let intent = Intent::created();
        assert!(matches!(
            admit(Act::Delete { force: false }, &intent, Status::Running),
            Admission::Refused { .. }
        ));
        assert!(matches!(
            admit(Act::Delete { force: true }, &intent, Status::Running),
            Admission::Change(_)
        ));
    }
}
