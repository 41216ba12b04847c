//! Taking and giving back while nothing dies.

use std::collections::BTreeSet;
use std::fs;

use super::super::VfioError;
use super::machine::{FakeKernel, Machine, one_group, two_cards};
use super::{at, set, task};

#[test]
fn what_was_taken_goes_back_to_its_drivers() {
    let machine = one_group();
    machine.write("0000:02:00.0", "driver_override", "nvidia\n");
    let before = machine.state();
    let vfio = machine.vfio();
    let given = vfio.take(task(1), &set(&["0000:01:00.0", "0000:02:00.0"])).unwrap();
    assert_eq!(given.nodes, [machine.path("dev/vfio/1")]);
    assert_eq!(given.arguments.len(), 10, "two ports, three functions: {:?}", given.arguments);
    let with_vfio = |address| machine.driver(address).as_deref() == Some("vfio-pci");
    assert!(with_vfio("0000:01:00.1") && with_vfio("0000:03:00.0"));
    assert_eq!(machine.driver("0000:00:01.0").as_deref(), Some("pcieport"));
    assert_eq!(vfio.held().unwrap().len(), 4);
    vfio.give_back(task(1)).unwrap();
    assert_eq!(machine.state(), before);
    assert!(vfio.held().unwrap().is_empty() && machine.journals() == 0);
    vfio.give_back(task(1)).unwrap();
}

#[test]
fn what_is_with_another_machine_is_refused() {
    let machine = two_cards();
    let vfio = machine.vfio();
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    let error = vfio.take(task(2), &set(&["0000:01:00.0"])).unwrap_err();
    assert!(matches!(error, VfioError::Taken { task: by, .. } if by == task(1)), "{error}");
    vfio.take(task(2), &set(&["0000:41:00.0"])).unwrap();
    assert_eq!(machine.journals(), 2);
    // A second try of the same machine is no conflict.
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    vfio.give_back(task(1)).unwrap();
    assert_eq!(machine.driver("0000:41:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn the_administrators_own_binding_stays() {
    let machine = two_cards();
    for function in ["0000:01:00.0", "0000:01:00.1"] {
        fs::remove_file(machine.path("sys/bus/pci/devices").join(function).join("driver")).unwrap();
        machine.write(function, "natural", "vfio-pci");
        FakeKernelProbe::probe(&machine, function);
    }
    let before = machine.state();
    let vfio = machine.vfio();
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    vfio.give_back(task(1)).unwrap();
    assert_eq!(machine.state(), before);
    assert_eq!(machine.driver("0000:01:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn users_are_named_before_anything_is_touched() {
    let machine = two_cards();
    let before = machine.state();
    machine.child("0000:01:00.0", "drm", "renderD128", &[]);
    machine.process(812, "python3", "dri/renderD128");
    let error = machine.vfio().take(task(1), &set(&["0000:01:00.0"])).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("process 812 (python3) has ") && text.contains("renderD128"), "{text}");

    let gpu = machine.path("proc/driver/nvidia/gpus/0000:41:00.0");
    fs::create_dir_all(&gpu).unwrap();
    fs::write(gpu.join("information"), "Model: A100\nDevice Minor: \t 1\n").unwrap();
    machine.process(813, "nvidia-persiste", "nvidia1");
    let error = machine.vfio().take(task(1), &set(&["0000:41:00.0"])).unwrap_err();
    assert!(error.to_string().contains("813 (nvidia-persiste)"), "{error}");
    assert_eq!((machine.state(), machine.journals()), (before, 0));
}

#[test]
fn a_driver_that_takes_nothing_leaves_everything_as_it_was() {
    let machine = one_group();
    let before = machine.state();
    let kernel = FakeKernel::new(&machine);
    kernel.sick.lock().unwrap().insert("vfio-pci".to_owned());
    let gpus = set(&["0000:01:00.0", "0000:02:00.0"]);
    let error = machine.vfio_with(kernel).take(task(1), &gpus).unwrap_err();
    assert!(error.to_string().contains("was offered to the driver vfio-pci"), "{error}");
    assert_eq!((machine.state(), machine.journals()), (before, 0));
}

#[test]
fn the_driver_is_loaded_where_it_is_missing_and_named_where_it_cannot_be() {
    let machine = two_cards();
    fs::remove_dir_all(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = machine.vfio().take(task(1), &set(&["0000:01:00.0"])).unwrap_err();
    assert!(matches!(error, VfioError::NoDriver { .. }), "{error}");
    let modules = vec!["vfio-pci".to_owned()];
    let kernel = FakeKernel { modules, ..FakeKernel::new(&machine) };
    machine.vfio_with(kernel).take(task(1), &set(&["0000:01:00.0"])).unwrap();
}

#[test]
fn a_driver_that_was_unloaded_is_loaded_again() {
    let machine = two_cards();
    let before = machine.state();
    machine.vfio().take(task(1), &set(&["0000:01:00.0"])).unwrap();
    fs::remove_dir_all(machine.path("sys/bus/pci/drivers/snd_hda_intel")).unwrap();
    let modules = vec!["snd_hda_intel".to_owned()];
    let kernel = FakeKernel { modules, ..FakeKernel::new(&machine) };
    machine.vfio_with(kernel).give_back(task(1)).unwrap();
    assert_eq!(machine.state(), before);
}

#[test]
fn what_a_sick_driver_does_not_take_back_is_tried_again_or_inherited() {
    let machine = two_cards();
    let before = machine.state();
    machine.vfio().take(task(1), &set(&["0000:01:00.0"])).unwrap();
    let kernel = FakeKernel::new(&machine);
    kernel.sick.lock().unwrap().insert("nvidia".to_owned());
    let vfio = machine.vfio_with(kernel);
    let error = vfio.give_back(task(1)).unwrap_err();
    assert!(error.to_string().contains("0000:01:00.0"), "{error}");
    assert_eq!(machine.driver("0000:01:00.0"), None);
    assert_eq!(
        machine.driver("0000:01:00.1").as_deref(),
        Some("snd_hda_intel"),
        "the rest is back"
    );
    // Another machine can have it, and what is known of it goes along.
    vfio.take(task(2), &set(&["0000:01:00.0"])).unwrap();
    let vfio = machine.vfio();
    assert!(vfio.repair(&BTreeSet::from([task(2)])).is_empty());
    assert_eq!(machine.driver("0000:01:00.0").as_deref(), Some("vfio-pci"));
    vfio.give_back(task(2)).unwrap();
    assert_eq!((machine.state(), machine.journals()), (before, 0));
}

#[test]
fn a_function_that_was_pulled_out_holds_nothing_up() {
    let machine = two_cards();
    let vfio = machine.vfio();
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    fs::remove_file(machine.path("sys/bus/pci/devices/0000:01:00.0")).unwrap();
    vfio.give_back(task(1)).unwrap();
    assert_eq!(machine.driver("0000:01:00.1").as_deref(), Some("snd_hda_intel"));
}

#[test]
fn a_journal_of_an_earlier_boot_is_dropped_and_a_damaged_one_moved_aside() {
    let machine = two_cards();
    let vfio = machine.vfio();
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    let after = machine.state();
    machine.boot("second");
    assert!(vfio.held().unwrap().is_empty());
    assert!(vfio.repair(&BTreeSet::from([task(1)])).is_empty());
    assert_eq!((machine.state(), machine.journals()), (after, 0), "nothing was touched");
    fs::write(machine.path("journal/7.json"), "{").unwrap();
    let errors = vfio.repair(&BTreeSet::new());
    assert!(matches!(errors.as_slice(), [VfioError::Damaged(_)]), "{errors:?}");
    assert!(vfio.repair(&BTreeSet::new()).is_empty());
}

#[test]
fn a_living_machine_keeps_what_it_has() {
    let machine = two_cards();
    let vfio = machine.vfio();
    vfio.take(task(1), &set(&["0000:01:00.0"])).unwrap();
    vfio.take(task(2), &set(&["0000:41:00.0"])).unwrap();
    assert!(vfio.repair(&BTreeSet::from([task(2)])).is_empty());
    assert_eq!(machine.driver("0000:01:00.0").as_deref(), Some("nvidia"));
    assert_eq!(machine.driver("0000:41:00.0").as_deref(), Some("vfio-pci"));
    assert_eq!(vfio.held().unwrap()[&at("0000:41:00.0")], task(2));
}

/// What a boot does.
struct FakeKernelProbe;

impl FakeKernelProbe {
    fn probe(machine: &Machine, address: &str) {
        use super::super::Kernel;
        let probe = machine.path("sys/bus/pci/drivers_probe");
        FakeKernel::new(machine).write(&probe, address).unwrap();
    }
}
