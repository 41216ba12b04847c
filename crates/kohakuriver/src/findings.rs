//! What a machine has, said at the start: what was found, and what each missing thing would give.

use kohakuriver_model::{DockerState, Inventory, Memory};

pub fn lines(inventory: &Inventory) -> Vec<String> {
    let memory = Memory::from_bytes(inventory.memory_bytes);
    let mut lines = vec![format!("machine  {} cores, {memory} of memory", inventory.cores)];
    lines.push(match &inventory.docker {
        DockerState::Ready { version } => format!("docker   engine {version}"),
        DockerState::Unavailable { reason } => {
            format!("docker   none: {reason}; needed for Docker VPSes")
        }
    });
    lines.push(if inventory.kvm_device {
        "kvm      /dev/kvm is there (for virtual machines, in a later version)".to_owned()
    } else {
        "kvm      none; virtual machines would be emulated, which is slow".to_owned()
    });
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
