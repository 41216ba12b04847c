//! Little memory for one process, as a node that has none left.

use std::fs;
use std::path::{Path, PathBuf};

const ROOTS: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];

/// A control group of the test's own. Dropping it removes it; what was in it must be gone.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// From now on the process gets no more than that many bytes beyond what it has.
    pub fn on(pid: i32, bytes: u64) -> Self {
        let old = Path::new(ROOTS[0]).exists();
        let root = Path::new(if old { ROOTS[0] } else { ROOTS[1] });
        if !old {
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        let group = root.join(format!("kr-e2e-{pid}"));
        fs::create_dir(&group).expect("control groups can be made");
        let limit = group.join(if old { "memory.limit_in_bytes" } else { "memory.max" });
        fs::write(limit, bytes.to_string()).expect("memory can be limited");
        // Not into swap instead.
        let swap = if old { "memory.swappiness" } else { "memory.swap.max" };
        let _ = fs::write(group.join(swap), "0");
        // What it has stays where it was taken from.
        fs::write(group.join("cgroup.procs"), pid.to_string()).expect("the process is there");
        Self { group }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.group);
    }
}
