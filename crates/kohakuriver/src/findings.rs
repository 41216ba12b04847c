//! The summary of this computer's resources at the start, with the benefit of each missing one.

use kohakuriver_model::{DockerState, Inventory, Memory, VmAccel, VmState};

pub fn lines(inventory: &Inventory) -> Vec<String> {
    let memory = Memory::from_bytes(inventory.memory_bytes);
    let mut lines = vec![format!("machine  {} cores, {memory} of memory", inventory.cores)];
    lines.push(match &inventory.docker {
        DockerState::Ready { version } => format!("docker   engine {version}"),
        DockerState::Unavailable { reason } => {
            format!("docker   none: {reason}; needed for Docker VPSes")
        }
    });
    if let Some(warning) = &inventory.docker_warning {
        lines.push(format!("         warning: {warning}"));
    }
    lines.push(match &inventory.vm {
        VmState::Ready { version, .. } => format!("qemu     {version}"),
        VmState::Unavailable { reason } => {
            format!("qemu     none: {reason}; needed for virtual machines")
        }
    });
    lines.push(format!("kvm      {}", kvm(inventory)));
    lines.push(if inventory.gpus.is_empty() {
        "gpus     none found (nvidia-smi lists them where NVIDIA's driver is installed)".to_owned()
    } else {
        let names: Vec<_> = inventory.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        format!("gpus     {}", names.join(", "))
    });
    lines.push(match inventory.numa.len() {
        0 | 1 => "numa     one node; nothing to choose".to_owned(),
        nodes => format!("numa     {nodes} nodes"),
    });
    lines
}

/// Describes KVM's state; a device that opens may still not work.
fn kvm(inventory: &Inventory) -> String {
    match (&inventory.vm, inventory.kvm_device) {
        (VmState::Ready { accel: VmAccel::Kvm, .. }, _) => "works: a guest ran under it".to_owned(),
        (VmState::Ready { accel: VmAccel::Tcg, warning: Some(warning), .. }, _) => {
            format!("not used: {warning}")
        }
        (VmState::Ready { accel: VmAccel::Tcg, warning: None, .. }, _) => {
            "not used: virtual machines are emulated, some ten times slower".to_owned()
        }
        (VmState::Unavailable { .. }, true) => {
            "/dev/kvm is there: with QEMU, virtual machines would be fast".to_owned()
        }
        (VmState::Unavailable { .. }, false) => {
            "none: virtual machines would be emulated, some ten times slower".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(vm: VmState, kvm_device: bool) -> String {
        let docker = DockerState::Ready { version: "27".to_owned() };
        lines(&Inventory { vm, kvm_device, ..Inventory::of(2, 1 << 30, docker) }).join("\n")
    }

    #[test]
    fn each_missing_thing_is_said_with_what_it_would_give() {
        let ready = |accel, warning: Option<&str>| VmState::Ready {
            version: "10.0.2".to_owned(),
            accel,
            warning: warning.map(ToOwned::to_owned),
        };
        let fast = said(ready(VmAccel::Kvm, None), true);
        assert!(fast.contains("qemu     10.0.2") && fast.contains("kvm      works"), "{fast}");
        let slow = said(ready(VmAccel::Tcg, Some("a guest hung under KVM")), true);
        assert!(slow.contains("kvm      not used: a guest hung"), "{slow}");
        let none = VmState::Unavailable { reason: "no qemu-system-x86_64 in PATH".to_owned() };
        let none = said(none, false);
        assert!(none.contains("none: no qemu-system-x86_64 in PATH; needed for"), "{none}");
        assert!(none.contains("ten times slower"), "{none}");
    }
}
