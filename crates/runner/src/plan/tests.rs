//! Crashes, reboots and changes of mind between any two writes, against a tiny backend.

use std::collections::BTreeMap;

use kohakuriver_link::protocol::Order;
use kohakuriver_model::{ImageSource, InstanceSpec, TaskId};
use proptest::prelude::*;

use super::*;
use crate::ledger::Record;

pub(crate) fn order(intent: Intent) -> Order {
    let image = ImageSource::Registry { reference: "test:1".to_owned() };
    let spec = InstanceSpec {
        name: None,
        image,
        cores: 0,
        memory_bytes: None,
        pids_limit: 100,
        ssh: None,
        env: BTreeMap::new(),
    };
    Order { task_id: TaskId::from_u64(7), intent, spec }
}

/// A machine with one instance: what survives a crash, and what survives a reboot.
#[derive(Debug)]
struct Machine {
    disk: Option<Record>,
    backend: Option<Found>,
    boot: u32,
    ticks: i64,
    creates: u32,
    starts: u32,
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
        let boot = self.boot.to_string();
        self.disk.as_ref().map(|record| plan(&record.view(&boot), self.backend.as_ref()))
    }

    /// The driver's own sequence of writes and acts.
    fn perform(&mut self, step: Step) -> Result<(), Crash> {
        let boot = self.boot.to_string();
        match step {
            Step::Create => {
                self.write(|record| record.attempted = true)?;
                self.act(|machine| {
                    assert!(machine.backend.is_none(), "created twice");
                    machine.creates += 1;
                    machine.backend = Some(Found { life: Life::Created, started: None });
                })
            }
            Step::Start { before } => {
                self.write(|record| record.intend_start(&boot, before))?;
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
            Step::Stop => self.act(|machine| machine.end(0)),
            Step::Remove => self.act(|machine| machine.backend = None),
            Step::Forget => self.act(|machine| machine.disk = None),
            Step::Rest(_) => Ok(()),
        }
    }

    fn start(&mut self) {
        self.starts += 1;
        let found = self.backend.as_mut().expect("starts what exists");
        assert!(!found.is_running(), "started what runs");
        *found = Found {
            life: Life::Running { started_at_ms: self.ticks },
            started: Some(self.ticks.to_string()),
        };
    }

    fn end(&mut self, exit_code: i64) {
        if let Some(found) = self.backend.as_mut().filter(|found| found.is_running()) {
            found.life = Life::Ended { exit_code: Some(exit_code), finished_at_ms: self.ticks };
        }
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.end(137);
    }

    /// Steps until rest, or until the crash that was set up.
    fn run(&mut self) -> Option<Observed> {
        for _ in 0..30 {
            match self.next()? {
                Step::Rest(seen) => {
                    self.until_crash = None;
                    return Some(seen);
                }
                step @ (Step::Create
                | Step::Start { .. }
                | Step::ConfirmStart
                | Step::AwaitAgent { .. }
                | Step::RecordEarlyEnd { .. }
                | Step::Stop
                | Step::Remove
                | Step::Forget) => {
                    if self.perform(step).is_err() {
                        self.until_crash = None;
                        return None;
                    }
                }
            }
        }
        panic!("it goes round in circles: {self:?}");
    }
}

#[derive(Clone, Debug)]
enum Happening {
    Order(u8),
    RunUntilCrash(u32),
    Run,
    Reboot,
    DiesByItself,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0u8..3).prop_map(Happening::Order),
        (0u32..8).prop_map(Happening::RunUntilCrash),
        Just(Happening::Run),
        Just(Happening::Reboot),
        Just(Happening::DiesByItself),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_happens_it_ends_as_wished(happenings in proptest::collection::vec(happening(), 0..24)) {
        let mut intent = Intent::created();
        let mut machine = Machine::new(intent);
        for happening in happenings {
            match happening {
                Happening::Order(_) if intent.desired == Desired::Deleted => {}
                Happening::Order(kind) => {
                    intent = match kind {
                        0 => intent.stop(),
                        1 => intent.restart(),
                        _ => intent.delete(),
                    };
                    if let Some(record) = &mut machine.disk {
                        record.accept(&order(intent), 0);
                    }
                }
                Happening::RunUntilCrash(writes) => {
                    machine.until_crash = Some(writes);
                    machine.run();
                }
                Happening::Run => { machine.run(); }
                Happening::Reboot => machine.reboot(),
                Happening::DiesByItself => machine.end(1),
            }
        }
        let seen = machine.run();
        prop_assert!(machine.creates <= 1, "{machine:?}");
        let runs = machine.backend.as_ref().is_some_and(Found::is_running);
        match intent.desired {
            Desired::Deleted => {
                prop_assert!(machine.backend.is_none() && machine.disk.is_none());
            }
            Desired::Stopped => {
                prop_assert!(!runs);
                let stopped = matches!(seen, Some(Observed::Stopped { .. }));
                prop_assert!(stopped, "{seen:?}");
            }
            // It may have died by itself; then it says so and does not run.
            Desired::Running => {
                let running = matches!(seen, Some(Observed::Running { .. }));
                prop_assert_eq!(running, runs);
                prop_assert!(seen.is_some());
            }
        }
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
    let restart = order(Intent::created().restart());
    machine.disk.as_mut().unwrap().accept(&restart, 0);
    assert_eq!(machine.next(), Some(Step::Stop));
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
    assert_eq!((machine.creates, machine.starts), (1, 2));
}

#[test]
fn what_died_by_itself_stays_down_until_the_machine_reboots() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.end(3);
    assert!(matches!(machine.run(), Some(Observed::Stopped { exit_code: Some(3), .. })));
    machine.reboot();
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}

#[test]
fn a_container_that_somebody_removed_is_not_replaced_by_an_empty_one() {
    let mut machine = Machine::new(Intent::created());
    machine.run();
    machine.backend = None;
    let restart = order(Intent::created().restart());
    machine.disk.as_mut().unwrap().accept(&restart, 0);
    let seen = machine.run();
    assert!(matches!(seen, Some(Observed::Failed { code: FailureCode::Disappeared, .. })));
    assert_eq!(machine.creates, 1);
}

#[test]
fn what_ends_before_its_agent_answers_has_failed() {
    let mut machine = Machine::new(Intent::created());
    machine.until_crash = Some(5);
    machine.run();
    machine.end(127);
    let seen = machine.run();
    assert!(matches!(seen, Some(Observed::Failed { code: FailureCode::StartRefused, .. })));
    let restart = order(Intent::created().restart());
    machine.disk.as_mut().unwrap().accept(&restart, 0);
    assert!(matches!(machine.run(), Some(Observed::Running { .. })));
}
