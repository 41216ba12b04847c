//! A host and two nodes as three machines: namespaces on a switch, each node with a Docker engine
//! and a network for virtual machines of its own, and every part killable by itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::disk::{SmallDisk, unmount_shared_storage};
use crate::engine::Engine;
use crate::machine::{Qemu, put_micro_image};
use crate::network::Network;
use crate::process::{Output, Server, run, run_with_input};
use crate::site::executable;

pub const NODES: [&str; 2] = ["n1", "n2"];
const HOST: &str = "host";
const PORT: &str = "8000";
const SSH_PORT: &str = "8002";
/// Seconds. A guest that is on its way down, or does not listen yet, has no more.
const STOP_GRACE: &str = "15";
/// Of the one who does everything, where people log in.
const PASSWORD: &str = "correct horse battery";

/// The cluster. Dropping it stops and removes everything.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they must go.
    host: Option<Server>,
    runners: [Option<Server>; 2],
    pub engines: [Engine; 2],
    pub network: Network,
    /// The host's.
    pub disk: SmallDisk,
    dir: tempfile::TempDir,
    lost_after: String,
    /// People log in.
    auth: bool,
}

impl Cluster {
    /// Starts all of it, both nodes with the tests' small guest among their images. With `auth`, its
    /// client is logged in as the first admin.
    pub fn start(lost_after_seconds: u32, auth: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("kr-c").tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("home")).expect("a fresh directory");
        let network = Network::new(&[HOST, NODES[0], NODES[1]]);
        let engine = |index: usize| {
            let number = 100 + u8::try_from(index).expect("two nodes");
            Engine::start(&network, NODES[index], number, &dir.path().join(NODES[index]))
        };
        let engines = [engine(0), engine(1)];
        let disk = SmallDisk::mount(dir.path().join("state"), 64);
        let lost_after = lost_after_seconds.to_string();
        let runners = [None, None];
        let mut cluster =
            Self { host: None, runners, engines, network, disk, dir, lost_after, auth };
        cluster.start_host();
        cluster.register();
        for index in 0..NODES.len() {
            put_micro_image(&cluster.runner_dir(index).join("shared"));
            let token = cluster.json(&["node", "token", "create"])["token"].clone();
            cluster.start_runner(index, Some(token.as_str().expect("a token is text")));
        }
        cluster
    }

    /// A client command on the host's machine.
    pub fn command(&self) -> Command {
        self.with_settings(self.network.command(HOST, executable()))
    }

    fn with_settings(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path().join("home"))
            .env("NO_COLOR", "1")
            .env("KOHAKURIVER_HOST", "127.0.0.1")
            .env("KOHAKURIVER_PORT", PORT)
            .env("KOHAKURIVER_SSH_PROXY_PORT", SSH_PORT);
        command
    }

    pub fn kr(&self, arguments: &[&str]) -> Output {
        run(self.command().args(arguments))
    }

    /// Runs a line of shell inside a VPS that may be out of reach.
    pub fn inside(&self, name: &str, line: &str) -> Output {
        let mut command = self.network.command(HOST, "timeout");
        command.args(["--signal", "KILL", "5"]).arg(executable());
        command.args(["terminal", "exec", name, "--", "sh", "-c", line]);
        run(&mut self.with_settings(command))
    }

    /// Where a node keeps everything.
    pub fn runner_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("runner-{}", NODES[index]))
    }

    /// The virtual machines that run on a node.
    pub fn qemus(&self, index: usize) -> Vec<Qemu> {
        Qemu::all_under(&self.runner_dir(index))
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kr(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    pub fn start_host(&mut self) {
        let mut command = self.command();
        command.args(["host", "--advertise", &self.network.address(HOST)]);
        command.args(["--lost-after", &self.lost_after, "--data-dir"]).arg(self.disk.path());
        if self.auth {
            command.arg("--auth");
        }
        let mut server = Server::start(&mut command);
        server.wait_for_line("host is up");
        self.host = Some(server);
    }

    fn register(&mut self) {
        let Some(host) = self.host.as_mut().filter(|_| self.auth) else { return };
        let line = host.wait_for_line("auth register");
        let token = line.split_once("--token ").expect("an invitation").1;
        let token = token.split_whitespace().next().expect("a token");
        let mut command = self.command();
        command.args(["auth", "register", "--token", token, "--username", "root"]);
        run_with_input(command.arg("--password-stdin"), PASSWORD.as_bytes()).ok();
    }

    /// Logs in anew, where people do: the token that this machine had is another one afterwards, or
    /// the old one where it came to nothing.
    pub fn log_in(&self) -> bool {
        let mut command = self.command();
        command.args(["auth", "login", "--username", "root", "--password-stdin"]);
        self.auth && run_with_input(&mut command, PASSWORD.as_bytes()).code == 0
    }

    /// Whether every entry of the audit log is as it was written.
    pub fn verify_audit(&self) -> Output {
        self.kr(&["audit", "verify"])
    }

    pub fn kill_host(&mut self) {
        if let Some(server) = self.host.take() {
            server.kill();
        }
    }

    pub fn start_runner(&mut self, index: usize, token: Option<&str>) {
        let name = NODES[index];
        let mut command = self.network.command(name, executable());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.dir.path().join("home"));
        command.env("KOHAKURIVER_ALLOW_LOCAL_IMAGE", "kohakuriver-test/*");
        command.args(["runner", "--name", name, "--data-dir"]);
        command.arg(self.runner_dir(index)).args(["--vm-stop-grace", STOP_GRACE]);
        command.arg("--docker-socket").arg(self.engines[index].socket());
        if let Some(token) = token {
            command.args(["--join", token]);
        }
        let mut server = Server::start(&mut command);
        server.wait_for_line("runner is up");
        self.runners[index] = Some(server);
    }

    pub fn kill_runner(&mut self, index: usize) {
        if let Some(server) = self.runners[index].take() {
            server.kill();
        }
    }

    pub fn restart_engine(&mut self, index: usize) {
        self.engines[index].restart(&self.network);
    }

    /// What the servers said last, for a test that fails.
    pub fn logs(&self) -> String {
        let log = |server: &Option<Server>| server.as_ref().map(Server::log).unwrap_or_default();
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        let [first, second] = &self.runners;
        format!(
            "--- host\n{}\n--- n1\n{}\n--- n2\n{}",
            tail(log(&self.host)),
            tail(log(first)),
            tail(log(second))
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nobody shall start again what is ended here.
        (self.host, self.runners) = (None, [None, None]);
        for qemu in Qemu::all_under(self.dir.path()) {
            qemu.kill();
        }
        unmount_shared_storage(self.dir.path());
    }
}
