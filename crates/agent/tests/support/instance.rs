//! An agent as a real process, and OpenSSH's own client in front of it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kohakuriver_agent::{AgentConfig, CONFIG_FILE, HOST_KEY_FILE, SOCKET_FILE};

#[derive(Debug)]
pub struct Instance {
    pub dir: tempfile::TempDir,
    agent: Child,
    port: u16,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Instance {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub fn start_with(change: impl FnOnce(&mut AgentConfig)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change)
    }

    /// Starts as in a restarted container: the socket file exists and has no listener.
    pub fn start_with_stale_socket() -> Self {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap());
        Self::start_in(dir, |_| {})
    }

    fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut AgentConfig)) -> Self {
        let path = dir.path();
        for (name, comment) in [(HOST_KEY_FILE, "host"), ("id", "me"), ("id_wrong", "them")] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
                .arg(path.join(name))
                .status()
                .unwrap();
            assert!(made.success());
        }
        let mut config = AgentConfig {
            task_id: "7".into(),
            hostname: "test".into(),
            ssh: true,
            authorized_keys: vec![std::fs::read_to_string(path.join("id.pub")).unwrap()],
            env: [("FROM_CONFIG".to_owned(), "config".to_owned())].into(),
            serve_port_22: false,
        };
        change(&mut config);
        write_config(path, &config);
        // Its root has an empty home: what this machine's own does at a login is not of interest.
        let home = path.join("home");
        std::fs::create_dir_all(&home).unwrap();
        let agent = Command::new("unshare")
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /root && exec \"$@\""])
            .args([&home, &agent_program(), path, path])
            .env("FROM_IMAGE", "image")
            .spawn()
            .unwrap();
        let socket = path.join(SOCKET_FILE);
        wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
        let port = relay(socket, "{\"target\":\"ssh\"}\n".to_owned());
        Self { dir, agent, port }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.id()
    }

    pub fn wait_agent(&mut self) -> std::process::ExitStatus {
        self.agent.wait().unwrap()
    }

    /// A stream of its own, after the given request line and the agent's answer to it.
    pub fn open(&self, request: &str) -> (String, UnixStream) {
        let mut stream = UnixStream::connect(self.path(SOCKET_FILE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        (read_line(&mut stream), stream)
    }

    fn options(&self, command: &mut Command, key: &str) {
        command
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=ERROR", "-i"])
            .arg(self.path(key))
            .env_remove("SSH_AUTH_SOCK");
    }

    pub fn ssh_as(&self, user: &str, key: &str, options: &[&str], command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        self.options(&mut ssh, key);
        ssh.args(options).args(["-p", &self.port.to_string()]).arg(format!("{user}@127.0.0.1"));
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh.stdin(Stdio::null());
        ssh
    }

    pub fn ssh(&self, options: &[&str], command: &str) -> Command {
        self.ssh_as("root", "id", options, command)
    }

    pub fn exec(&self, command: &str) -> Output {
        self.ssh(&[], command).output().unwrap()
    }

    /// `scp` or `sftp`, ready for its file arguments.
    pub fn copier(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.options(&mut command, "id");
        command.args(["-P", &self.port.to_string()]);
        command
    }

    pub fn sftp(&self, user: &str, batch: &str) -> Output {
        let file = self.path("batch");
        std::fs::write(&file, batch).unwrap();
        self.copier("sftp").arg("-b").arg(file).arg(format!("{user}@127.0.0.1")).output().unwrap()
    }
}

pub fn write_config(dir: &Path, config: &AgentConfig) {
    let text = serde_json::to_vec(config).unwrap();
    std::fs::write(dir.join(CONFIG_FILE), text).unwrap();
}

pub fn agent_program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("examples").join("agent");
    assert!(program.exists(), "run `cargo build --example agent` first");
    program
}

/// Returns a port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Stands in for the runner: forwards TCP connections to streams of the agent.
fn relay(socket: PathBuf, request: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(mut agent) = UnixStream::connect(&socket) else {
                return;
            };
            agent.write_all(request.as_bytes()).unwrap();
            if read_line(&mut agent) == "{\"ok\":true}" {
                std::thread::spawn(move || join(&client, &agent));
            }
        }
    });
    port
}

fn join(client: &TcpStream, agent: &UnixStream) {
    let _ = client.set_nodelay(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &*client, &mut &*agent);
            let _ = agent.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut &*agent, &mut &*client);
        let _ = client.shutdown(Shutdown::Write);
    });
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that no mistake in order or length leaves equal.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
