//! What the tests ask of virtual machines behind the product's back: their processes.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A QEMU that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Qemu {
    pub task_id: String,
    pub pid: i32,
}

impl Qemu {
    /// Those whose machines' files are under `dir`.
    pub fn all_under(dir: &Path) -> Vec<Self> {
        let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
        let mut all: Vec<Self> = processes
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let name = fs::read_to_string(entry.path().join("comm")).ok()?;
                // It works in the directory of its machine.
                let files = fs::read_link(entry.path().join("cwd")).ok()?;
                let ours = name.starts_with("qemu-system") && files.starts_with(dir);
                let task_id = files.file_name()?.to_str()?.to_owned();
                ours.then_some(Self { task_id, pid })
            })
            .collect();
        all.sort();
        all
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// Puts the tests' small guest among the images of `shared`, as `micro`;
/// `scripts/vm-micro-image.sh` makes it.
pub fn put_micro_image(shared: &Path) {
    let made = target_dir().join("vm-images/micro");
    let image = shared.join("vm-images/micro");
    fs::create_dir_all(&image).expect("the test's directory can be written");
    let files = fs::read_dir(&made).unwrap_or_else(|error| {
        panic!("{}: {error}: run scripts/vm-micro-image.sh target/vm-images", made.display())
    });
    for file in files {
        let file = file.expect("the image can be read");
        fs::copy(file.path(), image.join(file.file_name())).expect("the image fits");
    }
}

/// Where Cargo puts what it builds.
fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    let dir = test.ancestors().nth(4).expect("tests are four levels below it");
    dir.to_owned()
}
