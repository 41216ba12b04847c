//! OpenSSH's own server in a container, to compare with.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{run, run_with_input};
use crate::site::DEBIAN;
use crate::wait_until;

/// Not 22, which our agent takes.
const PORT: u16 = 2222;

/// A running sshd that lets one key in as root. Dropping it removes the container it made.
#[derive(Debug)]
pub struct Sshd {
    address: String,
    key: PathBuf,
    container: Option<String>,
}

impl Sshd {
    /// In a container of its own.
    pub fn start(key: &Path) -> Self {
        let name = format!("kr-sshd-{}", std::process::id());
        docker(&["run", "--detach", "--name", &name, DEBIAN, "sleep", "infinity"]);
        let mut sshd = Self::start_in(&name, key);
        sshd.container = Some(name);
        sshd
    }

    /// In a container that runs already and is somebody else's to remove.
    pub fn start_in(container: &str, key: &Path) -> Self {
        let public = std::fs::read(key.with_extension("pub")).expect("the key has a public half");
        let start = format!(
            "mkdir -p /run/sshd /root/.ssh && chmod 700 /root/.ssh && cat >/root/.ssh/bench_keys && \
             ssh-keygen -qA && /usr/sbin/sshd -p {PORT} -o AuthorizedKeysFile=/root/.ssh/bench_keys \
             -o PermitRootLogin=yes -o StrictModes=no"
        );
        let mut exec = Command::new("docker");
        exec.args(["exec", "--interactive", container, "sh", "-c", &start]);
        run_with_input(&mut exec, &public).ok();
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = docker(&["inspect", "--format", format, container]).trim().to_owned();
        wait_until("sshd answers", Duration::from_secs(10), || {
            TcpStream::connect((address.as_str(), PORT)).is_ok()
        });
        Self { address, key: key.to_owned(), container: None }
    }

    /// `ssh` to it; add options or the command.
    pub fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.arguments());
        command
    }

    /// `sftp` to it.
    pub fn sftp(&self) -> Command {
        let mut command = Command::new("sftp");
        command.args(self.arguments().into_iter().map(|word| match word.as_str() {
            "-p" => "-P".to_owned(),
            _ => word,
        }));
        command
    }

    /// What takes an `ssh` through it to somewhere else.
    pub fn proxy_command(&self) -> String {
        format!("ssh {} -W %h:%p", self.arguments().join(" "))
    }

    fn arguments(&self) -> Vec<String> {
        let (key, port) = (self.key.display().to_string(), PORT.to_string());
        let destination = format!("root@{}", self.address);
        let arguments = [
            "-F",
            "/dev/null",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-i",
            &key,
            "-p",
            &port,
            &destination,
        ];
        arguments.map(str::to_owned).to_vec()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if let Some(name) = &self.container {
            let _ = run(Command::new("docker").args(["rm", "--force", name]));
        }
    }
}

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments)).ok()
}
