//! Recorded machines: what is given of them, and what is refused.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;

use super::super::{Pci, Refusal, plan, refusal};
use super::machine::{Machine, one_group, two_cards};
use super::{at, set};

#[test]
fn a_card_goes_with_its_sound_and_without_its_neighbour() {
    let pci = two_cards().pci();
    assert_eq!(pci.gpus, set(&["0000:01:00.0", "0000:41:00.0"]));
    assert!(pci.peers(at("0000:01:00.0")).is_empty());
    let plan = plan(&pci, &set(&["0000:41:00.0"])).unwrap();
    assert_eq!(plan.groups, BTreeSet::from([33]));
    assert_eq!(plan.bind, set(&["0000:41:00.0", "0000:41:00.1"]));
    assert_eq!(plan.pass, plan.bind);
    let card = &pci.functions[&at("0000:01:00.0")];
    assert_eq!((card.vendor, card.device, card.group), (0x10de, 0x20b0, Some(12)));
    assert_eq!((card.numa, card.reset_methods.len()), (None, 2));
}

#[test]
fn cards_of_one_group_go_together_and_their_mates_are_bound_but_not_passed() {
    let pci = one_group().pci();
    assert_eq!(pci.peers(at("0000:01:00.0")), [at("0000:02:00.0")]);
    let parted = plan(&pci, &set(&["0000:01:00.0"])).unwrap_err();
    assert_eq!(parted, Refusal::Parted { gpu: at("0000:01:00.0"), peer: at("0000:02:00.0") });
    assert_eq!(refusal(&pci, at("0000:01:00.0")), None);
    let plan = plan(&pci, &set(&["0000:01:00.0", "0000:02:00.0"])).unwrap();
    assert_eq!(plan.pass, set(&["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]));
    let mut bound = plan.pass.clone();
    bound.insert(at("0000:03:00.0"));
    assert_eq!(plan.bind, bound, "all but the bridge");
}

#[test]
fn a_slot_in_two_groups_takes_both() {
    let machine = Machine::new();
    machine.add("0000:01:00.0", 0x03_0000, Some("nvidia"), Some(5));
    machine.add("0000:01:00.1", 0x04_0300, Some("snd_hda_intel"), Some(6));
    machine.add("0000:02:00.0", 0x03_0000, Some("nvidia"), Some(6));
    let pci = machine.pci();
    assert_eq!(pci.peers(at("0000:02:00.0")), [at("0000:01:00.0")]);
    let both = plan(&pci, &pci.gpus).unwrap();
    assert_eq!((both.groups.len(), both.pass.len()), (2, 3));
}

#[test]
fn without_an_iommu_the_kernels_parameters_are_named() {
    let machine = Machine::new();
    machine.add("0000:01:00.0", 0x03_0200, Some("nvidia"), None);
    let pci = machine.pci();
    let refusal = refusal(&pci, at("0000:01:00.0")).unwrap();
    assert_eq!(refusal, Refusal::NoIommu);
    assert!(refusal.to_string().contains("intel_iommu=on or amd_iommu=on"));
    // One group elsewhere: the IOMMU is on, this card is not behind it.
    machine.add("0000:09:00.0", 0x02_0000, None, Some(1));
    let other = super::super::refusal(&machine.pci(), at("0000:01:00.0"));
    assert_eq!(other, Some(Refusal::NoGroup(at("0000:01:00.0"))));
    let absent = plan(&pci, &set(&["0000:99:00.0"])).unwrap_err();
    assert_eq!(absent, Refusal::Absent(at("0000:99:00.0")));
}

#[test]
fn a_group_without_protection_is_none() {
    let machine = two_cards();
    let group = machine.path("sys/kernel/iommu_groups/12");
    fs::write(group.join("name"), "vfio-noiommu\n").unwrap();
    assert_eq!(machine.pci().functions[&at("0000:01:00.0")].group, None);
}

#[test]
fn the_card_with_the_console_stays_unless_the_console_is_freed() {
    let machine = one_group();
    machine.write("0000:01:00.0", "boot_vga", "1\n");
    for (name, text, bind) in [("vtcon0", "(S) dummy device", "1"), ("vtcon1", "(M) frame", "1")] {
        let dir = machine.path("sys/class/vtconsole").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("name"), text).unwrap();
        fs::write(dir.join("bind"), bind).unwrap();
    }
    // It is refused to its peer as well: they go together.
    for gpu in ["0000:01:00.0", "0000:02:00.0"] {
        let refusal = refusal(&machine.pci(), at(gpu)).unwrap();
        assert!(matches!(refusal, Refusal::Console { .. }), "{refusal:?}");
        assert!(refusal.to_string().contains("vtcon1/bind"), "{refusal}");
    }
    fs::write(machine.path("sys/class/vtconsole/vtcon1/bind"), "0").unwrap();
    assert_eq!(refusal(&machine.pci(), at("0000:01:00.0")), None);
}

#[test]
fn a_group_with_the_machines_disk_or_network_stays() {
    let machine = one_group();
    let nvme = "0000:03:00.0";
    let gpu = at("0000:01:00.0");
    let told = || refusal(&machine.pci(), gpu).map(|refusal| refusal.to_string());
    machine.child(nvme, "block", "nvme0n1", &[("dev", "259:0\n")]);
    machine.child(nvme, "block", "nvme0n1p2", &[("dev", "259:2\n")]);
    assert_eq!(told(), None, "a disk that nothing uses");

    let mountinfo = machine.path("proc/self/mountinfo");
    fs::write(&mountinfo, "22 1 259:2 / /home rw shared:1 - ext4 /dev/root rw\n").unwrap();
    let text = told().unwrap();
    assert!(text.contains("the disk nvme0n1p2, mounted on /home"), "{text}");
    fs::write(&mountinfo, "22 1 0:30 / /data rw - btrfs /dev/nvme0n1 rw\n").unwrap();
    assert!(told().unwrap().contains("the disk nvme0n1, mounted on /data"));
    fs::write(&mountinfo, "").unwrap();
    let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n";
    fs::write(machine.path("proc/swaps"), swaps).unwrap();
    assert!(told().unwrap().contains("used as swap"));
    fs::write(machine.path("proc/swaps"), "Filename\n").unwrap();
    assert_eq!(told(), None);
    fs::create_dir_all(machine.path("sys/class/block/nvme0n1p2/holders/dm-0")).unwrap();
    assert!(told().unwrap().contains("used by dm-0"));
    fs::remove_dir_all(machine.path("sys/class/block/nvme0n1p2/holders")).unwrap();

    machine.child(nvme, "net", "eth7", &[("flags", "0x1003\n")]);
    assert!(told().unwrap().contains("eth7, which is up"));
    fs::write(machine.path("sys/class/net/eth7/flags"), "0x1002\n").unwrap();
    assert_eq!(told(), None);
}

#[test]
fn a_disk_with_several_paths_is_found_by_its_own_name() {
    let machine = one_group();
    machine.child("0000:03:00.0", "block", "nvme3c0n1", &[("dev", "259:4\n")]);
    for (name, number) in [("nvme3n1", "259:5\n"), ("nvme3n1p2", "259:7\n"), ("nvme3n12", "")] {
        let head = machine.path("sys/devices/virtual/nvme-subsystem/nvme-subsys3").join(name);
        fs::create_dir_all(&head).unwrap();
        fs::write(head.join("dev"), number).unwrap();
        std::os::unix::fs::symlink(&head, machine.path("sys/class/block").join(name)).unwrap();
    }
    assert_eq!(refusal(&machine.pci(), at("0000:01:00.0")), None);
    let mountinfo = "22 1 259:7 / /srv rw - xfs /dev/root rw\n";
    fs::write(machine.path("proc/self/mountinfo"), mountinfo).unwrap();
    let refusal = refusal(&machine.pci(), at("0000:01:00.0")).unwrap();
    assert!(refusal.to_string().contains("nvme3n1p2, mounted on /srv"), "{refusal}");
}

#[test]
fn a_part_of_the_board_stays_with_its_driver() {
    let machine = one_group();
    machine.add("0000:00:1f.0", 0x06_0100, Some("lpc_ich"), Some(1));
    let refusal = refusal(&machine.pci(), at("0000:01:00.0")).unwrap();
    assert!(matches!(refusal, Refusal::Chipset { .. }), "{refusal:?}");
}

#[test]
fn a_cut_off_part_of_a_card_is_no_card() {
    let machine = two_cards();
    machine.add("0000:01:00.4", 0x03_0200, None, Some(40));
    machine.write("0000:01:00.4", "physfn", "");
    assert_eq!(machine.pci().gpus.len(), 2);
}

#[test]
fn a_machine_without_pci_has_nothing() {
    let machine = Machine::new();
    fs::remove_dir_all(machine.path("sys/bus/pci")).unwrap();
    assert!(machine.pci().functions.is_empty());
}

/// Class, group, driver, what it carries.
fn function() -> impl Strategy<Value = (u32, Option<u32>, bool, bool)> {
    let classes = vec![0x03_0000, 0x03_0200, 0x04_0300, 0x02_0000, 0x06_0400, 0x06_0100];
    let group = proptest::option::weighted(0.9, 0u32..4);
    (proptest::sample::select(classes), group, any::<bool>(), proptest::bool::weighted(0.1))
}

fn pci(functions: &[(u32, Option<u32>, bool, bool)]) -> Pci {
    let all = (0u8..).zip(functions).map(|(n, (class, group, driven, carries))| {
        let address = at(&format!("0000:{:02x}:{:02x}.{:x}", n / 8, n / 3 % 4, n % 3));
        let function = super::super::Function {
            address,
            class: *class,
            vendor: 0,
            device: 0,
            driver: driven.then(|| "some".to_owned()),
            driver_override: None,
            numa: None,
            boot_vga: false,
            is_virtual: false,
            reset_methods: Vec::new(),
            group: *group,
            carries: carries.then(|| "a disk".to_owned()),
        };
        (address, function)
    });
    let functions: std::collections::BTreeMap<_, _> = all.collect();
    let gpus = functions.values().filter(|f| f.is_display()).map(|f| f.address).collect();
    Pci { functions, gpus, console: None }
}

proptest! {
    #[test]
    fn a_plan_is_whole_groups_and_nothing_the_machine_needs(
        functions in proptest::collection::vec(function(), 0..16), pick in any::<u32>(),
    ) {
        let pci = pci(&functions);
        let wanted: BTreeSet<_> = pci.gpus.iter().enumerate()
            .filter(|(n, _)| pick >> (n % 32) & 1 == 1).map(|(_, gpu)| *gpu).collect();
        if let Ok(plan) = plan(&pci, &wanted) {
            prop_assert!(plan.pass.is_subset(&plan.bind));
            prop_assert!(wanted.is_subset(&plan.pass));
            for function in pci.functions.values() {
                let in_groups = function.group.is_some_and(|group| plan.groups.contains(&group));
                let bound = plan.bind.contains(&function.address);
                prop_assert_eq!(bound, in_groups && !function.is_pci_bridge());
                prop_assert!(!bound || function.carries.is_none());
                prop_assert!(!bound || function.driver.is_none() || !function.is_chipset());
                let is_other_gpu = pci.gpus.contains(&function.address)
                    && !wanted.contains(&function.address);
                prop_assert!(!(bound && is_other_gpu));
                let beside = wanted.iter().any(|gpu| gpu.is_same_slot(function.address));
                prop_assert_eq!(plan.pass.contains(&function.address),
                    beside && !function.is_pci_bridge());
            }
        }
    }

    #[test]
    fn being_peers_is_mutual_and_refused_alike(
        functions in proptest::collection::vec(function(), 0..16),
    ) {
        let pci = pci(&functions);
        for gpu in &pci.gpus {
            for peer in pci.peers(*gpu) {
                prop_assert!(pci.peers(peer).contains(gpu), "{gpu} {peer}");
                prop_assert_eq!(refusal(&pci, *gpu).is_some(), refusal(&pci, peer).is_some());
            }
        }
    }
}
