//! Drivers on the fake backend: what a host would see, and what survives the runner's death.

use kohakuriver_model::{Intent, SnapshotRef};
use kohakuriver_runner_link::protocol::{InstanceCommand, InstanceReply};

use super::*;
use crate::backend::fake::{FakeBackend, Fault};
use crate::plan::tests::order;
use crate::supervisor::InstanceSupervisor;

mod interruptions;

struct World {
    _dir: tempfile::TempDir,
    layout: Layout,
    backend: Arc<FakeBackend>,
    shared: Arc<Shared>,
    supervisor: Arc<InstanceSupervisor>,
}

impl World {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    /// In memory where that is possible: a ledger is synced at each step, which a busy disk makes slow.
    fn quick() -> Self {
        Self::within(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn within(dir: tempfile::TempDir) -> Self {
        let layout = Layout::new(dir.path().join("data"), dir.path().join("shared"));
        let backend = FakeBackend::new(layout.clone());
        let (shared, supervisor) = runner(&layout, &backend);
        Self { _dir: dir, layout, backend, shared, supervisor }
    }

    fn order(&self, intent: Intent) {
        self.supervisor.order(order(intent));
    }

    async fn until(&self, what: &str, holds: impl Fn(&Observation) -> bool) -> Observation {
        let wait = async {
            let mut changes = self.shared.board.subscribe();
            loop {
                if let Some(seen) = self.shared.board.get(InstanceId::from_u64(7))
                    && holds(&seen)
                {
                    return seen;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(120), wait).await {
            Ok(seen) => seen,
            Err(_) => panic!("not {what}: {:?}", self.shared.board.get(InstanceId::from_u64(7))),
        }
    }

    async fn until_running(&self, generation: u64) {
        self.until("running", |seen| {
            seen.generation == generation && matches!(seen.state, Observed::Running { .. })
        })
        .await;
    }

    async fn until_failed(&self, code: FailureCode) -> Observation {
        self.until(
            "failed",
            |seen| matches!(seen.state, Observed::Failed { code: found, .. } if found == code),
        )
        .await
    }

    /// Kills this runner's tasks wherever they are, and starts another on the same machine.
    fn crash(&mut self) {
        self.shared.shutdown.cancel();
        let (shared, supervisor) = runner(&self.layout, &self.backend);
        (self.shared, self.supervisor) = (shared, supervisor);
    }
}

fn runner(layout: &Layout, backend: &Arc<FakeBackend>) -> (Arc<Shared>, Arc<InstanceSupervisor>) {
    let ledger = Ledger::new(layout.clone());
    let (records, damaged) = ledger.load_all().unwrap();
    let shared = Arc::new(Shared {
        backends: Backends { docker: Arc::clone(backend) as _, qemu: Arc::clone(backend) as _ },
        ledger,
        layout: layout.clone(),
        board: Arc::default(),
        starts: Semaphore::new(STARTS_AT_ONCE),
        shutdown: CancellationToken::new(),
    });
    let supervisor = InstanceSupervisor::new(Arc::clone(&shared), records, damaged);
    let watching = Arc::clone(&supervisor);
    tokio::spawn(async move { watching.watch_backend().await });
    (shared, supervisor)
}

#[tokio::test]
async fn a_whole_life_is_reported_as_it_happens() {
    let world = World::new();
    let intent = Intent::created();
    world.order(intent);
    world.until_running(1).await;
    let seen = world.shared.board.get(InstanceId::from_u64(7)).unwrap();
    assert!(seen.ssh_host_key.is_some_and(|key| key.starts_with("ssh-ed25519 ")));
    // The same again restarts nothing.
    world.order(intent);
    let intent = intent.stop();
    world.order(intent);
    world
        .until("stopped", |seen| {
            seen.generation == 2
                && matches!(seen.state, Observed::Stopped { exit_code: Some(0), .. })
        })
        .await;
    let intent = intent.restart();
    world.order(intent);
    world.until_running(3).await;
    let intent = intent.restart();
    world.order(intent);
    world.until_running(4).await;
    world.order(intent.delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
    let expected = ["create", "start", "stop", "start", "stop", "start", "remove"];
    assert_eq!(world.backend.acts(), expected);
    assert!(!world.layout.instance(InstanceId::from_u64(7)).exists());
}

#[tokio::test]
async fn a_runner_that_comes_back_restarts_nothing() {
    let mut world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.crash();
    world.until_running(1).await;
    world.order(Intent::created());
    world.crash();
    world.until_running(1).await;
    assert_eq!(world.backend.acts(), ["create", "start"]);
}

#[tokio::test]
async fn an_end_by_itself_is_told_with_its_exit_code() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.die(InstanceId::from_u64(7), 3);
    world
        .until("stopped", |seen| matches!(seen.state, Observed::Stopped { exit_code: Some(3), .. }))
        .await;
    world.order(Intent::created().restart());
    world.until_running(2).await;
}

#[tokio::test]
async fn deleting_gives_up_a_pull_at_once() {
    let world = World::new();
    world.backend.fault(Fault::PullHangs, true);
    world.order(Intent::created());
    world.until("pulling", |seen| {
        matches!(&seen.state, Observed::Provisioning { step, percent: Some(1) } if step == "pulling")
    })
    .await;
    world.order(Intent::created().delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
    assert!(world.backend.acts().is_empty());
    // A deletion that the host repeats is answered again.
    world.shared.board.forget_absent(InstanceId::from_u64(7));
    world.order(Intent::created().delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
}

#[tokio::test]
async fn each_failure_has_its_code_and_a_restart_tries_again() {
    let faults = [
        (Fault::ImageMissing, FailureCode::ImageNotFound),
        (Fault::CreateRefused, FailureCode::StartRefused),
        (Fault::StartRefused, FailureCode::StartRefused),
        (Fault::AgentEndsAtOnce, FailureCode::StartRefused),
        (Fault::EngineAway, FailureCode::EngineUnavailable),
    ];
    for (fault, code) in faults {
        let mut world = World::new();
        world.backend.fault(fault, true);
        world.order(Intent::created());
        let seen = world.until_failed(code).await;
        if fault == Fault::AgentEndsAtOnce {
            assert!(format!("{seen:?}").contains("its last words"));
        }
        // It stays so, also for the next runner, until somebody asks again.
        world.crash();
        world.until_failed(code).await;
        world.backend.fault(fault, false);
        world.order(Intent::created().restart());
        world.until_running(2).await;
    }
}

#[tokio::test]
async fn order_blocked_by_absent_engine_is_reported_and_done_later() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.fault(Fault::EngineAway, true);
    // The fault wakes the driver, and nothing was asked of it: what was seen last stands.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = world.shared.board.get(InstanceId::from_u64(7)).unwrap();
    assert!(matches!(seen.state, Observed::Running { .. }), "{seen:?}");

    world.order(Intent::created().stop());
    let blocked = |seen: &Observation| {
        matches!(seen.state, Observed::Blocked { code: FailureCode::EngineUnavailable, .. })
    };
    world.until("told", |seen| seen.generation == 2 && blocked(seen)).await;
    assert_eq!(world.backend.acts(), ["create", "start"]);
    world.backend.fault(Fault::EngineAway, false);
    world.until("stopped", |seen| matches!(seen.state, Observed::Stopped { .. })).await;
}

#[tokio::test]
async fn what_never_existed_is_gone_without_asking_the_engine() {
    let world = World::new();
    world.backend.fault(Fault::EngineAway, true);
    world.order(Intent::created().delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
}

#[tokio::test]
async fn pausing_and_killing_are_seen_and_a_restart_ends_both() {
    let world = World::new();
    let intent = Intent::created();
    world.order(intent);
    world.until_running(1).await;
    world.order(intent.pause());
    world.until("paused", |seen| matches!(seen.state, Observed::Paused { .. })).await;
    let resumed = intent.pause().resume();
    world.order(resumed);
    world.until_running(3).await;
    world.order(resumed.pause());
    world.until("paused again", |seen| seen.generation == 4).await;
    world.order(resumed.pause().kill());
    world
        .until("killed", |seen| {
            matches!(seen.state, Observed::Stopped { exit_code: Some(137), .. })
        })
        .await;
    world.order(resumed.pause().kill().restart());
    world.until_running(6).await;
    let expected = ["create", "start", "pause", "resume", "pause", "resume", "kill", "start"];
    assert_eq!(world.backend.acts(), expected);
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_stop_that_takes_long() {
    let world = World::new();
    let intent = Intent::created();
    world.order(intent);
    world.until_running(1).await;
    world.backend.fault(Fault::StopHangs, true);
    world.order(intent.stop());
    while !world.backend.acts().contains(&"stop") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.order(intent.stop().kill());
    world.until("killed", |seen| seen.generation == 3).await;
    assert_eq!(world.backend.acts(), ["create", "start", "stop", "kill"]);
}

#[tokio::test]
async fn out_of_memory_ends_it_at_once_and_says_so() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.run_out_of_memory(InstanceId::from_u64(7));
    world.until("oom", |seen| matches!(seen.state, Observed::Stopped { oom: true, .. })).await;
    world.order(Intent::created().restart());
    world.until_running(2).await;
}

#[tokio::test]
async fn what_an_engine_took_along_comes_back_with_it() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.restart_engine();
    world
        .until("running again", |seen| {
            matches!(seen.state, Observed::Running { .. }) && world.backend.acts().len() == 3
        })
        .await;
    assert_eq!(world.backend.acts(), ["create", "start", "start"]);
}

#[tokio::test]
async fn new_limits_apply_while_it_runs_or_a_warning_says_when() {
    let world = World::new();
    let mut newest = order(Intent::created());
    world.supervisor.order(newest.clone());
    world.until_running(1).await;
    newest.spec.cores = 2;
    newest.intent = newest.intent.update();
    world.supervisor.order(newest.clone());
    world.until_running(2).await;
    assert_eq!(world.backend.acts(), ["create", "start", "resize"]);

    world.backend.fault(Fault::ResizeRefused, true);
    newest.spec.cores = 1;
    newest.intent = newest.intent.update();
    world.supervisor.order(newest.clone());
    let seen = world.until("warned", |seen| seen.generation == 3 && seen.warning.is_some()).await;
    assert!(matches!(seen.state, Observed::Running { .. }), "{seen:?}");
    newest.intent = newest.intent.restart();
    world.supervisor.order(newest);
    let seen = world
        .until("restarted", |seen| {
            seen.generation == 4 && matches!(seen.state, Observed::Running { .. })
        })
        .await;
    assert_eq!(seen.warning, None);
}

async fn ask(world: &World, command: InstanceCommand) -> InstanceReply {
    world.supervisor.execute(InstanceId::from_u64(7), command).await
}

#[tokio::test]
async fn snapshots_are_created_listed_restored_and_deleted() {
    let world = World::new();
    let mut newest = order(Intent::created());
    newest.spec.snapshots.keep = 2;
    world.supervisor.order(newest.clone());
    world.until_running(1).await;
    let create = || InstanceCommand::CreateSnapshot { name: None, message: Some("m".to_owned()) };
    for _ in 0..3 {
        assert!(matches!(ask(&world, create()).await, InstanceReply::Created { .. }));
    }
    let InstanceReply::Snapshots { snapshots, .. } =
        ask(&world, InstanceCommand::ListSnapshots { before: None }).await
    else {
        panic!("no list");
    };
    assert_eq!(snapshots.iter().map(|snapshot| snapshot.tag).collect::<Vec<_>>(), [3, 2]);
    let missing = ask(&world, InstanceCommand::DeleteSnapshot { tag: 1 }).await;
    assert!(matches!(missing, InstanceReply::Failed { code: FailureCode::SnapshotNotFound, .. }));

    // A snapshot that is not there leaves the disk that is.
    let task_id = InstanceId::from_u64(7);
    newest.intent = newest.intent.restore();
    newest.spec.snapshot = Some(SnapshotRef { task_id, tag: 1 });
    world.supervisor.order(newest.clone());
    world.until_failed(FailureCode::SnapshotNotFound).await;
    assert!(!world.backend.acts().contains(&"remove"));
    newest.intent = newest.intent.restore();
    newest.spec.snapshot = Some(SnapshotRef { task_id, tag: 3 });
    world.supervisor.order(newest.clone());
    world.until_running(3).await;
    assert!(world.backend.acts().ends_with(&["remove", "create", "start"]));

    newest.intent = newest.intent.delete();
    world.supervisor.order(newest);
    world.until("absent", |seen| seen.state == Observed::Absent).await;
    let InstanceReply::Snapshots { snapshots, .. } =
        ask(&world, InstanceCommand::ListSnapshots { before: None }).await
    else {
        panic!("no list");
    };
    assert!(snapshots.is_empty());
}

#[tokio::test]
async fn instance_without_isolation_starts_once_isolated() {
    let world = World::new();
    world.backend.fault(Fault::NotContained, true);
    let intent = Intent::created();
    world.order(intent);
    let seen = world.until_failed(FailureCode::StartRefused).await;
    let Observed::Failed { message, hint, .. } = seen.state else { panic!("{seen:?}") };
    assert!(message.contains("cannot isolate") && hint.is_some(), "{message}");
    assert_eq!(world.backend.acts(), ["create", "start", "stop"], "it was ended, its disk kept");
    world.backend.fault(Fault::NotContained, false);
    world.order(intent.restart());
    world.until_running(2).await;
}

#[tokio::test]
async fn what_ended_before_it_was_contained_is_told_as_ended() {
    let world = World::new();
    world.backend.fault(Fault::NotContained, true);
    world.backend.fault(Fault::AgentEndsAtOnce, true);
    world.order(Intent::created());
    let seen = world.until_failed(FailureCode::StartRefused).await;
    let Observed::Failed { message, .. } = seen.state else { panic!("{seen:?}") };
    assert!(message.contains("ended right after its start"), "{message}");
}

#[tokio::test]
async fn panicked_driver_is_replaced_and_goes_on_from_the_ledger() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.fault(Fault::InspectPanics, true);
    let stop = Intent::created().stop();
    world.order(stop);
    world
        .until("blocked", |seen| {
            seen.generation == 2 && matches!(seen.state, Observed::Blocked { .. })
        })
        .await;
    world.backend.fault(Fault::InspectPanics, false);
    world
        .until("stopped", |seen| {
            seen.generation == 2 && matches!(seen.state, Observed::Stopped { .. })
        })
        .await;
    // With an empty record it would have been made again, or started.
    assert_eq!(world.backend.acts(), ["create", "start", "stop"]);
    world.order(stop.restart());
    world.until_running(3).await;
}

#[tokio::test]
async fn damaged_record_is_made_anew_and_restarts_nothing() {
    let mut world = World::new();
    let id = InstanceId::from_u64(7);
    world.order(Intent::created());
    world.until_running(1).await;
    std::fs::write(world.layout.instance(id).join("order.json"), b"{\"order\":").unwrap();
    world.crash();
    assert_eq!(world.shared.board.get(id), None, "nothing is known before the host orders");
    world.order(Intent::created());
    let seen = world.until("running", |seen| matches!(seen.state, Observed::Running { .. })).await;
    assert!(seen.warning.is_some_and(|text| text.contains("damaged")), "it is not told");
    assert!(world.layout.instance(id).join("order.json.damaged").exists());
    assert_eq!(world.backend.acts(), ["create", "start"]);
    // It is an instance like any other now.
    let stop = Intent::created().stop();
    world.order(stop);
    world.until("stopped", |seen| matches!(seen.state, Observed::Stopped { .. })).await;
    world.order(stop.delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
    assert_eq!(world.backend.acts(), ["create", "start", "stop", "remove"]);
    assert!(!world.layout.instance(id).exists());
}

#[tokio::test]
async fn instance_with_damaged_files_can_still_be_deleted() {
    let world = World::new();
    world.order(Intent::created());
    world.until_running(1).await;
    world.backend.fault(Fault::Damaged, true);
    let stop = Intent::created().stop();
    world.order(stop);
    let seen = world.until("blocked", |seen| matches!(seen.state, Observed::Blocked { .. })).await;
    let Observed::Blocked { message, .. } = seen.state else { panic!("{seen:?}") };
    assert!(message.contains("machine.json"), "{message}");
    world.order(stop.delete());
    world.until("absent", |seen| seen.state == Observed::Absent).await;
}
