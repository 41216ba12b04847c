//! A Docker engine of a test's own, in a network namespace, that can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Network;
use crate::process::{Output, run};
use crate::site::BUSYBOX;
use crate::wait_until;

/// The engine of one machine. Dropping it removes what it runs and stops it.
#[derive(Debug)]
pub struct Engine {
    machine: String,
    /// The third number of its containers' addresses.
    number: u8,
    dir: PathBuf,
    child: Option<Child>,
}

impl Engine {
    /// Starts one with the tests' smallest image in it.
    pub fn start(network: &Network, machine: &str, number: u8, dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the test's directory can be written");
        let mut engine =
            Self { machine: machine.to_owned(), number, dir: dir.to_owned(), child: None };
        engine.restart(network);
        let tar = dir.join("image.tar");
        run(Command::new("docker").args(["save", "--output"]).arg(&tar).arg(BUSYBOX)).ok();
        engine.docker(&["load", "--input", &tar.to_string_lossy()]).ok();
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Runs `docker` against this engine.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        let address = format!("unix://{}", self.socket().display());
        run(Command::new("docker").args(["--host", &address]).args(arguments))
    }

    /// `kill -9`, as when the machine's memory runs out.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it where it does not run, and waits until it answers.
    pub fn restart(&mut self, network: &Network) {
        self.kill();
        // What a killed one left would be taken for living processes.
        for stale in ["docker.pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.dir.join(stale));
        }
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log"));
        let log = log.expect("the test's directory can be written");
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let child = network
            .command(&self.machine, "dockerd")
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("docker.pid"), "--storage-driver", "overlay2"])
            .args(["--bip", &format!("172.31.{}.1/24", self.number)])
            .args(["--cgroup-parent", &format!("/kr-{}-{}", self.machine, self.number)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("dockerd is installed");
        self.child = Some(child);
        wait_until("the engine answers", Duration::from_secs(60), || {
            self.docker(&["version"]).code == 0
        });
    }

    /// Its containers that are ours: name and state word, such as `running`.
    pub fn containers(&self) -> Vec<(String, String)> {
        let format = "{{.Names}} {{.State}}";
        let filter = "label=kohakuriver.managed=true";
        let list = self.docker(&["ps", "--all", "--filter", filter, "--format", format]).ok();
        let split = |line: &str| {
            line.split_once(' ').map(|(name, state)| (name.to_owned(), state.to_owned()))
        };
        list.lines().filter_map(split).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let all = self.docker(&["ps", "--all", "--quiet"]).stdout;
        let ids: Vec<&str> = all.split_whitespace().collect();
        if !ids.is_empty() {
            let _ = self.docker(&[&["rm", "--force"], &ids[..]].concat());
        }
        if let Some(mut child) = self.child.take() {
            let pid = i32::try_from(child.id()).expect("pids are small");
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ = child.wait();
        }
        // Each one that was killed has left the mount that an engine makes of its data.
        let data = self.dir.join("data");
        while run(Command::new("umount").arg("--lazy").arg(&data)).code == 0 {}
    }
}
