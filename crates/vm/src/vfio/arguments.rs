//! What QEMU is told of passed functions, and what it says when it cannot have them.

use std::collections::BTreeSet;

use super::address::PciAddress;

/// Each card on a port of its own, its functions beside each other as they are on the board:
/// drivers look for a GPU's sound in the slot of the GPU.
pub fn arguments(pass: &BTreeSet<PciAddress>) -> Vec<String> {
    let mut slots: Vec<Vec<PciAddress>> = Vec::new();
    for address in pass {
        match slots.last_mut().filter(|slot| slot[0].is_same_slot(*address)) {
            Some(slot) => slot.push(*address),
            None => slots.push(vec![*address]),
        }
    }
    let mut arguments = Vec::new();
    let mut device = |text: String| arguments.extend(["-device".to_owned(), text]);
    for (port, slot) in slots.iter().enumerate() {
        // Chassis numbers count the machine's slots and must differ; the low ones are left to
        // whatever else has a port.
        device(format!("pcie-root-port,id=vfio{port},chassis={}", 100 + port));
        let shift = u8::from(slot[0].function() != 0);
        for (at, address) in (0u8..).zip(slot) {
            // A guest looks at function 0 first, and at no other where that is missing.
            let function = if shift == 0 { address.function() } else { at };
            let many = if at == 0 && slot.len() > 1 { ",multifunction=on" } else { "" };
            device(format!("vfio-pci,host={address},bus=vfio{port},addr=00.{function}{many}"));
        }
    }
    arguments
}

/// What to do about what QEMU said of a passed function before it ended.
pub fn explain(said: &str) -> Option<&'static str> {
    let cases = [
        (
            "is not viable",
            "a function of the group has got another driver: kohakuriver takes the whole group, \
             so something bound it again; look for it in dmesg",
        ),
        (
            "Device or resource busy",
            "another process has the group open: find it with fuser -v /dev/vfio/*",
        ),
        (
            "Cannot allocate memory",
            "the guest's memory cannot be locked: raise the limit of locked memory \
             (LimitMEMLOCK=infinity in the runner's systemd unit)",
        ),
        (
            "No interrupt remapping",
            "the IOMMU cannot remap interrupts: switch it on in the firmware (x2APIC, interrupt \
             remapping)",
        ),
        (
            "No available IOMMU models",
            "the kernel's module vfio_iommu_type1 is missing: modprobe vfio_iommu_type1",
        ),
        (
            "Permission denied",
            "QEMU's user may not open the group: /dev/vfio/GROUP must belong to it",
        ),
        ("No such file or directory", "the functions are not with vfio-pci: restart the VPS"),
        ("no such host device", "the card is gone from the bus: look at it, and at dmesg"),
    ];
    if !said.contains("vfio") {
        return None;
    }
    cases.iter().find(|(sign, _)| said.contains(sign)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(addresses: &[&str]) -> Vec<String> {
        let pass = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let arguments = arguments(&pass);
        assert!(arguments.iter().step_by(2).all(|argument| argument == "-device"));
        arguments.into_iter().skip(1).step_by(2).collect()
    }

    #[test]
    fn each_card_has_a_port_with_its_functions_in_place() {
        let two = told(&["0000:01:00.0", "0000:01:00.1", "0000:41:00.0"]);
        let expected = [
            "pcie-root-port,id=vfio0,chassis=100",
            "vfio-pci,host=0000:01:00.0,bus=vfio0,addr=00.0,multifunction=on",
            "vfio-pci,host=0000:01:00.1,bus=vfio0,addr=00.1",
            "pcie-root-port,id=vfio1,chassis=101",
            "vfio-pci,host=0000:41:00.0,bus=vfio1,addr=00.0",
        ];
        assert_eq!(two, expected);
        assert!(arguments(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_card_without_its_first_function_starts_at_the_first_all_the_same() {
        let moved = told(&["0000:01:00.1", "0000:01:00.3"]);
        assert_eq!(moved[1], "vfio-pci,host=0000:01:00.1,bus=vfio0,addr=00.0,multifunction=on");
        assert_eq!(moved[2], "vfio-pci,host=0000:01:00.3,bus=vfio0,addr=00.1");
    }

    #[test]
    fn what_qemu_says_is_explained() {
        let viable = "qemu-system-x86_64: -device vfio-pci,host=0000:00:15.0: vfio 0000:00:15.0: \
                      group 10 is not viable";
        assert!(explain(viable).unwrap().contains("another driver"));
        let busy = "vfio 0000:00:15.0: failed to open /dev/vfio/10: Device or resource busy";
        assert!(explain(busy).unwrap().contains("fuser"));
        for absent in [
            "vfio 0000:00:11.0: failed to open /dev/vfio/4: No such file or directory",
            "vfio 0000:00:11.0: Could not open '/dev/vfio/4': No such file or directory",
        ] {
            assert!(explain(absent).unwrap().contains("restart"));
        }
        assert_eq!(explain("Could not set up host forwarding rule: Device or resource busy"), None);
    }
}
