//! A disk that a test can fill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

/// A small file system of the test's own. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `megabytes` large.
    pub fn mount(path: PathBuf, megabytes: u32) -> Self {
        fs::create_dir_all(&path).expect("a fresh directory");
        let size = format!("size={megabytes}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path)).ok();
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let file = format!("of={}", self.filler().display());
        let _ = run(Command::new("dd").args(["if=/dev/zero", &file, "bs=4096"]));
    }

    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

/// Takes away what runners that were killed left mounted over the shared storage under `dir`.
pub fn unmount_shared_storage(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for place in places.filter(|place| place.starts_with(dir) && place.ends_with("shared_data")) {
        let _ = run(Command::new("umount").arg("--lazy").arg(place));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}
