//! Crashes, reboots and changes of mind between any two writes, against a tiny backend.

use kohakuriver_model::{ImageSource, InstanceId, InstanceSpec, SnapshotPolicy};
use kohakuriver_runner_link::protocol::Order;
use proptest::prelude::*;

use super::*;
use crate::ledger::Record;

pub(crate) fn order(intent: Intent) -> Order {
    let image = ImageSource::Registry { reference: "test:1".to_owned() };
    let spec = InstanceSpec { pids_limit: 100, ..InstanceSpec::new(image) };
    Order { task_id: InstanceId::from_u64(7), intent, spec }
}

/// A machine with one instance: what survives a crash, and what survives a reboot.
#[derive(Debug)]
struct Machine {
    disk: Option<Record>,
    backend: Option<BackendState>,
    boot: u32,
    ticks: i64,
    creates: u32,
    starts: u32,
    snapshots: u32,
    /// Writes and acts left before the runner is killed.
    until_crash: Option<u32>,
}

struct Crash;

impl Machine {
    fn new(intent: Intent) -> Self {
        Self {
            disk: Some(Record::new(order(intent), 0)),
            backend: None,
            boot: 1,
            ticks: 0,
            creates: 0,
            starts: 0,
            snapshots: 0,
            until_crash: None,
        }
    }

    fn act(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), Crash> {
        if let Some(left) = &mut self.until_crash {
            if *left == 0 {
                return Err(Crash);
            }
            *left -= 1;
        }
        self.ticks += 1;
        change(self);
        Ok(())
    }

    fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Crash> {
        self.act(|machine| {
            if let Some(record) = &mut machine.disk {
                change(record);
            }
        })
    }

    fn next(&self) -> Option<Step> {
        let record = self.disk.as_ref()?;
        let mut backend = self.backend.clone();
        if let Some(found) = &mut backend {
            found.epoch = self.boot.to_string();
        }
        Some(plan(&record.view(limits(record.order.spec.cores), self.ticks), backend.as_ref()))
    }

    /// The driver's own sequence of writes and acts.
    fn perform(&mut self, step: Step) -> Result<(), Crash> {
        match step {
            Step::Create => {
                self.write(|record| record.attempted = true)?;
                self.act(|machine| {
                    assert!(machine.backend.is_none(), "created twice");
                    let order = &machine.disk.as_ref().expect("driven by its record").order;
                    machine.creates += 1;
                    machine.backend = Some(BackendState {
                        life: Lifecycle::Created,
                        started: None,
                        disk: order.intent.disk_generation,
                        oom: false,
                        limits: limits(order.spec.cores),
                        epoch: String::new(),
                    });
                })
            }
            Step::Replace | Step::Remove => self.act(|machine| machine.backend = None),
            Step::Start { before, epoch } => {
                self.write(|record| record.intend_start(epoch, before))?;
                self.act(Machine::start)?;
                self.write(Record::confirm_start)
            }
            Step::ConfirmStart => self.write(Record::confirm_start),
            Step::AwaitAgent { .. } => self.write(Record::agent_answered),
            Step::RecordEarlyEnd { .. } => self.write(|record| {
                record.failure = Some(Failure {
                    start_generation: record.order.intent.start_generation,
                    code: FailureCode::StartRefused,
                    message: String::new(),
                    hint: None,
                    at_create: false,
                });
            }),
            Step::RecordOom => self.write(Record::ran_out_of_memory),
            Step::SettleEnd => {
                let started = self.found().started.clone();
                self.write(|record| record.exit_is_final = started)
            }
            Step::Pause => self.act(|machine| {
                let Lifecycle::Running { started_at_ms } = machine.found().life else {
                    panic!("paused what does not run");
                };
                machine.found().life = Lifecycle::Paused { started_at_ms };
            }),
            Step::Resume => self.act(|machine| {
                let Lifecycle::Paused { started_at_ms } = machine.found().life else {
                    panic!("resumed what is not paused");
                };
                machine.found().life = Lifecycle::Running { started_at_ms };
            }),
            Step::Resize => self.act(|machine| {
                let cores = machine.disk.as_ref().expect("driven by its record").order.spec.cores;
                machine.found().limits = limits(cores);
            }),
            Step::Stop | Step::Kill => self.act(|machine| {
                assert!(machine.found().is_running(), "ended what does not run");
                machine.end(0);
            }),
            Step::SnapshotOnStop => {
                self.act(|machine| machine.snapshots += 1)?;
                let started = self.found().started.clone();
                self.write(|record| record.stop_snapshotted(started, None))
            }
            Step::Forget => self.act(|machine| machine.disk = None),
            Step::Settle(_) => Ok(()),
        }
    }

    fn found(&mut self) -> &mut BackendState {
        self.backend.as_mut().expect("it exists")
    }

    fn order(&mut self, order: &Order) {
        if let Some(record) = &mut self.disk {
            record.accept(order, 0);
        }
    }

    fn start(&mut self) {
        self.starts += 1;
        let ticks = self.ticks;
        let found = self.found();
        assert!(
            matches!(found.life, Lifecycle::Created | Lifecycle::Ended { .. }),
            "started what is up"
        );
        found.life = Lifecycle::Running { started_at_ms: ticks };
        found.started = Some(ticks.to_string());
        found.oom = false;
    }

    fn end(&mut self, exit_code: i64) {
        let finished_at_ms = self.ticks;
        if let Some(found) = &mut self.backend
            && matches!(found.life, Lifecycle::Running { .. } | Lifecycle::Paused { .. })
        {
            found.life = Lifecycle::Ended { exit_code: Some(exit_code), finished_at_ms };
        }
    }

    /// The kernel kills a process of it, and sometimes that was the main one.
    fn run_out_of_memory(&mut self, main: bool) {
        if let Some(found) = &mut self.backend
            && found.is_running()
        {
            found.oom = true;
            if main {
                self.end(KILLED_EXIT_CODE);
            }
        }
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.end(137);
    }

    /// Steps until rest, or until the crash that was set up.
    fn run(&mut self) -> Option<Observed> {
        for _ in 0..30 {
            let step = self.next()?;
            if let Step::Settle(seen) = step {
                self.until_crash = None;
                return Some(seen);
            }
            if self.perform(step).is_err() {
                self.until_crash = None;
                return None;
            }
        }
        panic!("it goes round in circles: {self:?}");
    }
}

fn limits(cores: u32) -> Limits {
    Limits { cores, memory_bytes: 0, pids: 100 }
}

#[derive(Clone, Debug)]
enum Happening {
    Order(u8),
    Resize(u32),
    RunUntilCrash(u32),
    Run,
    Reboot,
    DiesByItself,
    OutOfMemory { main: bool },
    TimePasses,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0u8..7).prop_map(Happening::Order),
        1 => (0u32..4).prop_map(Happening::Resize),
        3 => (0u32..8).prop_map(Happening::RunUntilCrash),
        2 => Just(Happening::Run),
        1 => Just(Happening::Reboot),
        1 => Just(Happening::DiesByItself),
        1 => any::<bool>().prop_map(|main| Happening::OutOfMemory { main }),
        1 => Just(Happening::TimePasses),
    ]
}

fn wish(intent: Intent, kind: u8) -> Intent {
    match kind {
        0 => intent.stop(),
        1 => intent.kill(),
        2 => intent.restart(),
        3 => intent.restore(),
        4 => intent.pause(),
        5 => intent.resume(),
        _ => intent.delete(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn whatever_happens_it_ends_as_wished(
        on_stop in any::<bool>(),
        happenings in proptest::collection::vec(happening(), 0..24),
    ) {
        let mut newest = order(Intent::created());
        newest.spec.snapshots = SnapshotPolicy { keep: 5, on_stop };
        let mut machine = Machine::new(newest.intent);
        machine.disk = Some(Record::new(newest.clone(), 0));
        for happening in happenings {
            match happening {
                Happening::Order(_) | Happening::Resize(_)
                    if newest.intent.desired == Desired::Deleted => {}
                Happening::Order(kind) => {
                    newest.intent = wish(newest.intent, kind);
                    machine.order(&newest);
                }
                Happening::Resize(cores) => {
                    newest.spec.cores = cores;
                    newest.intent = newest.intent.update();
                    machine.order(&newest);
                }
                Happening::RunUntilCrash(writes) => {
                    machine.until_crash = Some(writes);
                    machine.run();
                }
                Happening::Run => { machine.run(); }
                Happening::Reboot => machine.reboot(),
                Happening::DiesByItself => machine.end(1),
                Happening::OutOfMemory { main } => machine.run_out_of_memory(main),
                Happening::TimePasses => machine.ticks += SETTLE_MS,
            }
        }
        let seen = machine.run();
        let intent = newest.intent;
        // One for each disk that was asked for, and never two at once (see `perform`).
        let life = machine.backend.as_ref().map(|found| found.life);
        let runs = matches!(life, Some(Lifecycle::Running { .. }));
        let frozen = matches!(life, Some(Lifecycle::Paused { .. }));
        if intent.desired == Desired::Deleted {
            prop_assert!(machine.backend.is_none() && machine.disk.is_none());
            return Ok(());
        }
        match intent.desired {
            Desired::Deleted => {}
            Desired::Stopped | Desired::Killed => {
                prop_assert!(!runs && !frozen);
                let stopped = matches!(seen, Some(Observed::Stopped { .. }));
                prop_assert!(stopped, "{seen:?}");
            }
            // It may have died by itself; then it says so and does not run.
            Desired::Running => {
                let running = matches!(seen, Some(Observed::Running { .. }));
                prop_assert_eq!(running, runs);
                prop_assert!(!frozen);
                prop_assert!(seen.is_some());
            }
            Desired::Paused => {
                let paused = matches!(seen, Some(Observed::Paused { .. }));
                prop_assert_eq!(paused, frozen);
                prop_assert!(!runs);
                prop_assert!(seen.is_some());
            }
        }
        if let Some(found) = &machine.backend && found.is_running() {
            prop_assert_eq!(found.disk, intent.disk_generation, "it runs on the disk that was asked for");
            prop_assert_eq!(found.limits, limits(newest.spec.cores));
        }
        prop_assert!(on_stop || machine.snapshots == 0);
    }

    #[test]
    fn crashes_alone_start_it_exactly_once(crashes in proptest::collection::vec(0u32..5, 0..12)) {
        let mut machine = Machine::new(Intent::created());
        for writes in crashes {
            machine.until_crash = Some(writes);
            machine.run();
        }
        let running = matches!(machine.run(), Some(Observed::Running { .. }));
        prop_assert!(running, "{machine:?}");
        prop_assert_eq!((machine.creates, machine.starts), (1, 1));
    }
}

#[test]
fn a_restart_keeps_the_container_and_starts_it_again() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.order(&order(Intent::created().restart()));
    assert_eq!(machine.next(), Some(Step::Stop));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    assert_eq!((machine.creates, machine.starts), (1, 2));
}

#[test]
fn what_died_while_its_engine_lived_on_stays_down_over_a_reboot() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.end(3);
    assert!(matches!(machine.run(), Some(Observed::Stopped { exit_code: Some(3), .. })));
    machine.ticks += SETTLE_MS;
    assert_eq!(machine.next(), Some(Step::SettleEnd));
    machine.run();
    machine.reboot();
    assert!(matches!(machine.run(), Some(Observed::Stopped { exit_code: Some(3), .. })));
    machine.order(&order(Intent::created().restart()));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}

#[test]
fn what_its_engine_took_along_is_started_again() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    // The engine ends its containers first, and goes then: the end is seen and not yet settled.
    machine.end(137);
    assert!(matches!(machine.run(), Some(Observed::Stopped { .. })));
    machine.boot += 1;
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    assert_eq!((machine.creates, machine.starts), (1, 2));
}

#[test]
fn a_paused_one_is_paused_again_after_a_reboot() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.order(&order(Intent::created().pause()));
    assert!(matches!(machine.run(), Some(Observed::Paused { .. })));
    machine.reboot();
    assert!(matches!(machine.run(), Some(Observed::Paused { .. })));
}

#[test]
fn out_of_memory_ends_it_or_not_as_its_owner_wished() {
    for (on_oom, main) in [(OnOom::End, false), (OnOom::End, true), (OnOom::KeepRunning, true)] {
        let mut first = order(Intent::created());
        first.spec.on_oom = on_oom;
        let mut machine = Machine::new(first.intent);
        machine.disk = Some(Record::new(first.clone(), 0));
        machine.run();
        machine.run_out_of_memory(main);
        assert!(matches!(machine.run(), Some(Observed::Stopped { oom: true, .. })), "{machine:?}");
        machine.reboot();
        assert!(matches!(machine.run(), Some(Observed::Stopped { oom: true, .. })));
        first.intent = first.intent.restart();
        machine.order(&first);
        assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    }
    let mut first = order(Intent::created());
    first.spec.on_oom = OnOom::KeepRunning;
    let mut machine = Machine::new(first.intent);
    machine.disk = Some(Record::new(first, 0));
    machine.run();
    machine.run_out_of_memory(false);
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}

#[test]
fn a_restore_gives_up_the_old_disk_once_and_nothing_else_does() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    let restore = Intent::created().restore();
    machine.order(&order(restore));
    assert_eq!(machine.next(), Some(Step::Stop));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    machine.order(&order(restore.restart()));
    machine.run();
    machine.reboot();
    machine.run();
    assert_eq!((machine.creates, machine.starts), (2, 4));
}

#[test]
fn a_refused_resize_waits_for_the_next_start() {
    let mut newest = order(Intent::created());
    let mut machine = Machine::new(newest.intent);
    machine.run();
    newest.spec.cores = 2;
    newest.intent = newest.intent.update();
    machine.order(&newest);
    assert_eq!(machine.next(), Some(Step::Resize));
    machine.disk.as_mut().unwrap().refuse_resize("busy".to_owned());
    assert!(matches!(machine.next(), Some(Step::Settle(Observed::Running { .. }))));
    assert_eq!(machine.disk.as_ref().unwrap().current_warning(), Some("busy"));
    newest.intent = newest.intent.restart();
    machine.order(&newest);
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    assert_eq!(machine.found().limits, limits(2));
    assert_eq!(machine.disk.as_ref().unwrap().current_warning(), None);
}

#[test]
fn a_stop_makes_one_snapshot_where_that_is_the_policy() {
    let mut newest = order(Intent::created());
    newest.spec.snapshots.on_stop = true;
    let mut machine = Machine::new(newest.intent);
    machine.disk = Some(Record::new(newest.clone(), 0));
    machine.run();
    newest.intent = newest.intent.stop();
    machine.order(&newest);
    machine.run();
    machine.run();
    newest.intent = newest.intent.update();
    machine.order(&newest);
    machine.run();
    assert_eq!(machine.snapshots, 1);
    newest.intent = newest.intent.restart();
    machine.order(&newest);
    machine.run();
    newest.intent = newest.intent.kill();
    machine.order(&newest);
    machine.run();
    assert_eq!(machine.snapshots, 1, "a kill makes none");
}

#[test]
fn externally_removed_container_is_not_replaced_by_an_empty_one() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.backend = None;
    machine.order(&order(Intent::created().restart()));
    let seen = machine.run();
    assert!(matches!(seen, Some(Observed::Failed { code: FailureCode::Disappeared, .. })));
    assert_eq!(machine.creates, 1);
    // A snapshot is a disk that somebody asked for.
    machine.order(&order(Intent::created().restart().restore()));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}

#[test]
fn what_ends_before_its_agent_answers_has_failed() {
    let mut machine = Machine::new(Intent::created());
    machine.until_crash = Some(5);
    machine.run();
    machine.end(127);
    let seen = machine.run();
    assert!(matches!(seen, Some(Observed::Failed { code: FailureCode::StartRefused, .. })));
    machine.order(&order(Intent::created().restart()));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}
