//! Any order superseded by any other, or interrupted by a crash, at any step: at rest the node has what
//! the ledger says and nothing else.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use kohakuriver_model::{Intent, SnapshotRef};
use kohakuriver_runner_link::protocol::{InstanceCommand, InstanceReply, Order};

use super::*;
use crate::backend::fake::Thing;

const ID: InstanceId = InstanceId::from_u64(7);
/// Far more than any pair of acts takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const WORLDS_AT_ONCE: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Create,
    Stop,
    Kill,
    Restart,
    Restore,
    Pause,
    Delete,
    Snapshot,
}

/// How the first act is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The second is asked for, and then the step goes on.
    Superseded,
    /// The runner dies, and the second is asked of the next one.
    Crash,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// The acts that are over when the first of the pair comes.
    before: &'static [Act],
    first: Act,
    second: Act,
    cut: Cut,
}

struct Play {
    world: World,
    newest: Order,
    /// The answer to a request for a snapshot.
    saving: Option<tokio::task::JoinHandle<InstanceReply>>,
}

impl Play {
    fn new() -> Self {
        Self { world: World::quick(), newest: order(Intent::created()), saving: None }
    }

    /// Asks for it without waiting.
    fn ask(&mut self, act: Act) {
        let intent = self.newest.intent;
        self.newest.intent = match act {
            Act::Create => intent,
            Act::Stop => intent.stop(),
            Act::Kill => intent.kill(),
            Act::Restart => intent.restart(),
            Act::Restore => {
                self.newest.spec.snapshot = Some(SnapshotRef { task_id: ID, tag: 1 });
                intent.restore()
            }
            Act::Pause => intent.pause(),
            Act::Delete => intent.delete(),
            Act::Snapshot => {
                let supervisor = Arc::clone(&self.world.supervisor);
                let command = InstanceCommand::CreateSnapshot { name: None, message: None };
                self.saving =
                    Some(tokio::spawn(async move { supervisor.execute(ID, command).await }));
                return;
            }
        };
        self.world.supervisor.order(self.newest.clone());
    }

    /// Waits until the newest order is at its end.
    async fn rest(&self) -> Observed {
        let newest = self.newest.intent.generation;
        let at_rest = |seen: &Observation| {
            let moving =
                matches!(seen.state, Observed::Provisioning { .. } | Observed::Blocked { .. });
            (seen.generation == newest && !moving) || seen.state == Observed::Absent
        };
        self.world.until("at rest", at_rest).await.state
    }

    /// Waits until the node has what the ledger says.
    async fn is_tidy(&self, case: Case, step: u32) {
        let mut things = self.world.backend.things();
        let tidy = async {
            loop {
                let found = self.world.backend.inspect(ID).await.unwrap();
                let mut due = BTreeSet::new();
                if let Some(found) = &found {
                    due.insert(Thing::Disk);
                    if matches!(found.life, Lifecycle::Running { .. } | Lifecycle::Paused { .. }) {
                        due.insert(Thing::Tap);
                    }
                }
                if *things.borrow_and_update() == due {
                    return;
                }
                things.changed().await.unwrap();
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, tidy).await;
        let left = self.world.backend.things().borrow().clone();
        assert!(outcome.is_ok(), "{case:?}, cut at step {step}: {left:?} is left");
    }
}

/// Cuts at this step; `false`: the act has fewer.
async fn cut_at(case: Case, step: u32) -> bool {
    let mut play = Play::new();
    for act in case.before {
        play.ask(*act);
        play.rest().await;
        if *act == Act::Create {
            // What a restore goes back to.
            super::ask(&play.world, InstanceCommand::CreateSnapshot { name: None, message: None })
                .await;
        }
    }
    play.world.backend.pause_after(step);
    play.ask(case.first);
    let mut saving = play.saving.take();
    let rested = async {
        // A snapshot changes no observation.
        if let Some(saving) = &mut saving {
            saving.await.unwrap();
        }
        play.rest().await;
        play.is_tidy(case, step).await;
    };
    tokio::select! {
        () = play.world.backend.paused() => {}
        () = rested => return false,
    }
    match case.cut {
        Cut::Superseded => {
            play.ask(case.second);
            play.world.backend.go_on();
        }
        Cut::Crash => {
            play.world.crash();
            play.ask(case.second);
        }
    }
    let seen = play.rest().await;
    play.is_tidy(case, step).await;
    if case.second == Act::Delete {
        assert_eq!(seen, Observed::Absent, "{case:?}, cut at step {step}");
        assert!(!play.world.backend.has_snapshots(ID), "{case:?}, cut at step {step}");
        assert!(!play.world.layout.instance(ID).exists(), "{case:?}, cut at step {step}");
    }
    true
}

fn cases() -> Vec<Case> {
    use Act::{Create, Delete, Kill, Pause, Restart, Restore, Snapshot, Stop};
    let pairs: [(&[Act], &[Act]); 3] = [
        (&[], &[Create]),
        (&[Create], &[Stop, Kill, Restart, Restore, Delete, Snapshot]),
        (&[Create, Stop], &[Restart, Restore, Delete, Snapshot]),
    ];
    let mut cases = Vec::new();
    for (before, firsts) in pairs {
        for &first in firsts {
            for second in [Stop, Kill, Restart, Restore, Pause, Delete] {
                let is_possible = first != Delete || second == Delete;
                for cut in [Cut::Superseded, Cut::Crash] {
                    if is_possible {
                        cases.push(Case { before, first, second, cut });
                    }
                }
            }
        }
    }
    cases
}

#[tokio::test]
async fn acts_cut_at_any_step_leave_what_the_ledger_says() {
    let played = futures_util::stream::iter(cases()).map(|case| async move {
        let mut step = 0;
        while cut_at(case, step).await {
            step += 1;
        }
        step
    });
    let steps: Vec<u32> = played.buffer_unordered(WORLDS_AT_ONCE).collect().await;
    assert!(steps.iter().all(|steps| *steps > 1), "{steps:?}");
}

#[tokio::test]
async fn snapshot_of_a_superseded_restore_is_not_deleted() {
    let mut play = Play::new();
    play.ask(Act::Create);
    play.rest().await;
    let create = InstanceCommand::CreateSnapshot { name: None, message: None };
    super::ask(&play.world, create).await;
    play.world.backend.fault(Fault::PullHangs, true);
    play.ask(Act::Restore);
    play.ask(Act::Kill);
    play.rest().await;
    let delete = || InstanceCommand::DeleteSnapshot { tag: 1 };
    let refused = super::ask(&play.world, delete()).await;
    assert!(matches!(refused, InstanceReply::Failed { .. }), "{refused:?}");
    assert!(play.world.backend.has_snapshots(ID), "its disk is to be made from it");
    play.world.backend.fault(Fault::PullHangs, false);
    play.ask(Act::Restart);
    assert!(matches!(play.rest().await, Observed::Running { .. }));
    // The disk is made; the fake's needs its snapshot no more.
    assert_eq!(super::ask(&play.world, delete()).await, InstanceReply::Deleted);
}
