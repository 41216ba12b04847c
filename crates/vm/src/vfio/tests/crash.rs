//! The runner is killed after every single write, and what it left is repaired.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use proptest::prelude::*;

use super::super::Vfio;
use super::machine::{FakeKernel, KILLED, Machine, one_group, two_cards};
use super::{set, task};

/// Runs it until it is done or killed; true if it was killed.
fn is_killed(work: impl FnOnce()) -> bool {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let told = take_hook();
        set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&KILLED) {
                told(panic);
            }
        }));
    });
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => false,
        Err(panic) if panic.downcast_ref::<&str>() == Some(&KILLED) => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn dying(machine: &Machine, after: usize) -> Vfio {
    let kernel = FakeKernel { dies_after: Some(after), ..FakeKernel::new(machine) };
    machine.vfio_with(kernel)
}

/// Kills `act` after 0, 1, 2, ... writes on a fresh machine, until it is not killed any more.
/// Returns how often it was.
fn kill_everywhere(prepare: fn(&Vfio), act: fn(&Vfio)) -> usize {
    for writes in 0.. {
        let machine = one_group();
        let before = machine.state();
        prepare(&machine.vfio());
        let killed = is_killed(|| act(&dying(&machine, writes)));
        // The repair is killed as well, at every point.
        for more in 0.. {
            let repair = || assert!(dying(&machine, more).repair(&BTreeSet::new()).is_empty());
            if !is_killed(repair) {
                break;
            }
        }
        assert_eq!(machine.state(), before, "killed after {writes} writes");
        assert_eq!(machine.journals(), 0, "killed after {writes} writes");
        if !killed {
            return writes;
        }
    }
    unreachable!()
}

fn take(vfio: &Vfio) {
    vfio.take(task(1), &set(&["0000:01:00.0", "0000:02:00.0"])).unwrap();
}

#[test]
fn killed_anywhere_while_taking_everything_is_given_back() {
    // Three functions with a driver take three writes, the one without takes two.
    assert_eq!(kill_everywhere(|_| (), take), 11);
}

#[test]
fn killed_anywhere_while_giving_back_the_rest_is_given_back() {
    assert_eq!(kill_everywhere(take, |vfio| vfio.give_back(task(1)).unwrap()), 11);
}

#[test]
fn any_write_may_fail_and_nothing_is_lost() {
    for at in 0..11 {
        let machine = one_group();
        let before = machine.state();
        let kernel = FakeKernel { fails_at: Some(at), ..FakeKernel::new(&machine) };
        let gpus = set(&["0000:01:00.0", "0000:02:00.0"]);
        machine.vfio_with(kernel).take(task(1), &gpus).unwrap_err();
        assert_eq!((machine.state(), machine.journals()), (before.clone(), 0), "write {at}");

        take(&machine.vfio());
        let kernel = FakeKernel { fails_at: Some(at), ..FakeKernel::new(&machine) };
        let vfio = machine.vfio_with(kernel);
        vfio.give_back(task(1)).unwrap_err();
        assert_eq!(machine.journals(), 1, "write {at}: it is not forgotten");
        vfio.give_back(task(1)).unwrap();
        assert_eq!((machine.state(), machine.journals()), (before, 0), "write {at}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Take { task: u64, cards: u8, killed_after: Option<usize> },
    GiveBack { task: u64, killed_after: Option<usize> },
    Repair { living: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    let killed = || proptest::option::of(0usize..8);
    prop_oneof![
        (1u64..4, 1u8..4, killed()).prop_map(|(task, cards, killed_after)| Act::Take {
            task,
            cards,
            killed_after
        }),
        (1u64..4, killed()).prop_map(|(task, killed_after)| Act::GiveBack { task, killed_after }),
        (0u8..16).prop_map(|living| Act::Repair { living }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_in_whatever_order_all_is_given_back_in_the_end(
        acts in proptest::collection::vec(act(), 0..12),
    ) {
        let machine = two_cards();
        let before = machine.state();
        for act in acts {
            let vfio = |killed: Option<usize>| match killed {
                Some(after) => dying(&machine, after),
                None => machine.vfio(),
            };
            match act {
                Act::Take { task: id, cards, killed_after } => {
                    let cards: BTreeSet<_> = set(&["0000:01:00.0", "0000:41:00.0"])
                        .into_iter().zip(0..).filter(|(_, n)| cards >> n & 1 == 1)
                        .map(|(card, _)| card).collect();
                    is_killed(|| drop(vfio(killed_after).take(task(id), &cards)));
                }
                Act::GiveBack { task: id, killed_after } => {
                    is_killed(|| drop(vfio(killed_after).give_back(task(id))));
                }
                Act::Repair { living } => {
                    let living = (1..4).filter(|n| living >> n & 1 == 1).map(task).collect();
                    prop_assert!(machine.vfio().repair(&living).is_empty());
                }
            }
            // Nobody has what another has.
            let held = machine.vfio().held().unwrap();
            for (address, (driver, _)) in machine.state() {
                let with_vfio = driver.as_deref() == Some("vfio-pci");
                prop_assert!(!with_vfio || held.contains_key(&address.parse().unwrap()));
            }
        }
        prop_assert!(machine.vfio().repair(&BTreeSet::new()).is_empty());
        prop_assert_eq!(machine.state(), before);
        prop_assert_eq!(machine.journals(), 0);
    }
}
