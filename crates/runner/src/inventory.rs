//! The node's hardware and load, read from the kernel and from `nvidia-smi`.

use std::path::Path;
use std::sync::LazyLock;

use kohakuriver_model::{DockerState, Inventory};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::backend::Backends;

pub mod gpu;
mod load;
mod memory;
mod numa;

pub use load::LoadMeter;

/// Looks at the whole machine. `data` is where the runner keeps what it must not forget.
pub async fn detect_inventory(backends: &Backends, data: &Path) -> Inventory {
    let gpus = gpu::detect(data).await;
    let mut inventory = Inventory { gpus, gpu_runtime: gpu::runtime(), ..detect_machine() };
    backends.describe(&mut inventory).await;
    inventory
}

/// Cores and bytes of memory of this machine.
pub fn size() -> (u32, u64) {
    static SIZE: LazyLock<(u32, u64)> = LazyLock::new(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = memory::read().map_or(0, |memory| memory.total_bytes);
        (u32::try_from(cores).unwrap_or(u32::MAX), memory)
    });
    *SIZE
}

/// Detects the hardware that the kernel reports.
fn detect_machine() -> Inventory {
    let (cores, memory_bytes) = size();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let docker = DockerState::Unavailable { reason: String::new() };
    Inventory {
        numa: numa::detect(Path::new("/sys/devices/system/node")),
        kvm_device: nix::fcntl::open("/dev/kvm", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .is_ok(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        os: pretty_name(&read("/etc/os-release")),
        ..Inventory::of(cores, memory_bytes, docker)
    }
}

fn pretty_name(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim().trim_matches('"').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_name_is_read() {
        let text = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(text), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(pretty_name(""), "");
    }

    #[test]
    fn this_machine_has_something() {
        let machine = detect_machine();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
    }
}
