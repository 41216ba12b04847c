//! One test's place: data, home directory, and the commands that know both.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use crate::disk::unmount_shared_storage;
use crate::docker::containers_under;
use crate::machine::{Qemu, put_micro_image};
use crate::process::{Output, Server, run};

/// BusyBox alone: no sshd, no bash.
pub const BUSYBOX: &str = "kohakuriver-test/busybox";
/// One static program, no shell at all.
pub const SCRATCH: &str = "kohakuriver-test/scratch";
/// A whole distribution with OpenSSH's server installed.
pub const DEBIAN: &str = "kohakuriver-test/debian";

/// The place. Dropping it removes its containers and their network.
#[derive(Debug)]
pub struct Site {
    dir: tempfile::TempDir,
    port: u16,
    ssh_port: u16,
    /// Where runners dial in, of a host alone.
    link_port: u16,
    /// Its host serves people by TLS.
    https: bool,
    /// What its servers log, where it is not the usual.
    log: Option<String>,
    /// What runs in place of the tested executable.
    executable: Option<PathBuf>,
    /// Tells its networks from those of other sites, also of other test processes.
    number: u8,
    /// Its number is taken for as long as this is locked.
    _number: File,
}

/// Below where the kernel takes ports for connections: what a host had is there for the next one,
/// whatever others did while none ran.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on, and that this process gives to no other site.
fn free_port() -> u16 {
    // Several test processes at once should not ask for the same ones.
    let begin = u16::try_from(std::process::id() * 61 % u32::from(PORTS)).unwrap_or(0);
    for _ in 0..PORTS {
        let next = NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = FIRST_PORT + (begin + next) % PORTS;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// A number that no other site of this machine has.
fn free_number() -> (u8, File) {
    let taken = std::env::temp_dir().join("kr-e2e-numbers");
    fs::create_dir_all(&taken).expect("the temporary directory can be written");
    for number in 1..=250 {
        let file = File::create(taken.join(number.to_string())).expect("it can be written");
        if file.try_lock().is_ok() {
            return (number, file);
        }
    }
    panic!("no number is free");
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    pub fn new() -> Self {
        let dir =
            tempfile::Builder::new().prefix("kr-e2e").tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("home")).expect("a fresh directory");
        let (number, locked) = free_number();
        let [port, ssh_port, link_port] = [(); 3].map(|()| free_port());
        Self {
            dir,
            port,
            ssh_port,
            link_port,
            https: false,
            log: None,
            executable: None,
            number,
            _number: locked,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// Where the host listens for runners.
    pub fn link_port(&self) -> u16 {
        self.link_port
    }

    /// The executable with this site's settings and nothing else of the environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.executable.clone().unwrap_or_else(executable));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .env("NO_COLOR", "1")
            .env("KOHAKURIVER_HOST", if self.https { "https://127.0.0.1" } else { "127.0.0.1" })
            .env("KOHAKURIVER_VM_BRIDGE", self.bridge())
            .env("KOHAKURIVER_VM_SUBNET", format!("10.214.{}.0/24", self.number))
            .env("KOHAKURIVER_ALLOW_LOCAL_IMAGE", "kohakuriver-test/*")
            .env("KOHAKURIVER_CONTAINER_NETWORK", self.container_network())
            .env("KOHAKURIVER_CONTAINER_SUBNET", format!("10.215.{}.0/24", self.number))
            .env("KOHAKURIVER_PORT", self.port.to_string())
            .env("KOHAKURIVER_SSH_PROXY_PORT", self.ssh_port.to_string());
        if let Some(filter) = &self.log {
            command.env("KOHAKURIVER_LOG", filter);
        }
        command
    }

    /// From now on commands and servers are those of this executable, or of the tested one.
    pub fn use_executable(&mut self, path: Option<PathBuf>) {
        self.executable = path;
    }

    /// Whether the address is of another site's networks, which come and go with other tests.
    pub fn is_of_another_site(&self, address: &str) -> bool {
        let in_network = |network: &str| {
            let rest = address.strip_prefix(network).and_then(|rest| rest.split_once('.'));
            rest.is_some_and(|(number, _)| number != self.number.to_string())
        };
        in_network("10.214.") || in_network("10.215.")
    }

    /// Its servers log what this filter lets through.
    pub fn with_log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// The bridge of this site's machines.
    pub fn bridge(&self) -> String {
        format!("kre2e{}", self.number)
    }

    /// The devices of its machines on that bridge.
    pub fn taps(&self) -> Vec<String> {
        let ports = fs::read_dir(format!("/sys/class/net/{}/brif", self.bridge()));
        let names = ports.into_iter().flatten().flatten();
        names.map(|port| port.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The network of this site's containers.
    pub fn container_network(&self) -> String {
        format!("kre2ec{}", self.number)
    }

    /// Has the tests' small guest among its images.
    pub fn with_micro_image(self) -> Self {
        put_micro_image(&self.data_dir().join("shared"));
        self
    }

    /// The same for a runner of its own, with its state in `DATA/<name>`.
    pub fn with_micro_image_of(self, name: &str) -> Self {
        put_micro_image(&self.runner_dir(name).join("shared"));
        self
    }

    /// The pids of this site's QEMUs.
    pub fn machines(&self) -> Vec<i32> {
        Qemu::all_under(&self.data_dir()).into_iter().map(|qemu| qemu.pid).collect()
    }

    /// Runs a client command.
    pub fn kr(&self, arguments: &[&str]) -> Output {
        run(self.command().args(arguments))
    }

    /// Runs a client command that must go well, and reads its JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.kr(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// The VPS's status word, empty where there is none.
    pub fn status(&self, reference: &str) -> String {
        let output = self.kr(&["vps", "status", reference, "--json"]);
        let task: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        task["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Starts `kohakuriver up`; the ports are any free ones the first time and the same again.
    pub fn up(&mut self) -> Server {
        self.up_with(&[])
    }

    pub fn up_with(&mut self, arguments: &[&str]) -> Server {
        self.start_up(self.command(), arguments)
    }

    /// The same as a user that is not root, who must own the data directory.
    pub fn up_as(&mut self, user: u32, arguments: &[&str]) -> Server {
        let mut command = self.command();
        command.uid(user).gid(user);
        self.start_up(command, arguments)
    }

    /// The same where the node has another boot id than before. What a reboot ends, the test must.
    pub fn up_after_reboot(&mut self) -> Server {
        let boot_id = self.path().join("boot_id");
        fs::write(&boot_id, "5f0c9d1e-0000-4000-8000-000000000001\n").expect("it can be written");
        let product = self.command();
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(boot_id).arg(product.get_program());
        let settings = product.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.env_clear().envs(settings);
        self.start_up(command, &[])
    }

    fn start_up(&mut self, mut command: Command, arguments: &[&str]) -> Server {
        command.arg("up").arg("--data-dir").arg(self.data_dir()).args(arguments);
        command.args(["--port", &self.port.to_string(), "--ssh-port", &self.ssh_port.to_string()]);
        let mut server = Server::start(&mut command);
        server.wait_for_line("SSH gateway");
        server.wait_for_line("connected to the host");
        server
    }

    /// Starts it with `--tls`; nothing of the site's trusts it yet.
    pub fn https_up(&mut self) -> Server {
        self.https = true;
        self.up_with(&["--tls"])
    }

    /// Starts `kohakuriver host` with its state in `DATA/host`.
    pub fn host(&mut self) -> Server {
        self.host_with(&[])
    }

    /// Starts it with `--tls`; nothing of the site's trusts it yet.
    pub fn https_host(&mut self) -> Server {
        self.https = true;
        self.host_with(&["--tls"])
    }

    /// The same, and people log in.
    pub fn host_auth_https(&mut self) -> Server {
        self.https = true;
        self.host_with(&["--tls", "--auth"])
    }

    /// Starts it as for a team: reachable from the network, so people log in, by https.
    pub fn team_host(&mut self) -> Server {
        self.https = true;
        self.host_with(&["--bind", "0.0.0.0"])
    }

    /// Starts it with these flags.
    pub fn host_with(&mut self, arguments: &[&str]) -> Server {
        let mut command = self.command();
        command.arg("host").args(arguments).arg("--data-dir").arg(self.data_dir());
        command.args(["--port", &self.port.to_string(), "--ssh-port", &self.ssh_port.to_string()]);
        let link = if arguments.contains(&"--bind") { "0.0.0.0" } else { "127.0.0.1" };
        command.args([
            "--link-bind",
            link,
            "--link-port",
            &self.link_port.to_string(),
            "--advertise",
            "127.0.0.1",
        ]);
        let mut server = Server::start(&mut command);
        server.wait_for_line("host is up");
        server
    }

    /// Has the site's client know the host's CA, as after a first log-in.
    pub fn trust_host(&self) {
        let pem = fs::read_to_string(self.data_dir().join("host/ca.pem")).expect("the host's CA");
        let start = pem.find("-----BEGIN CERTIFICATE").expect("a certificate behind the key");
        let folder = self.home().join(".config/kohakuriver/ca");
        fs::create_dir_all(&folder).expect("the home is writable");
        fs::write(folder.join(format!("127.0.0.1:{}.pem", self.port)), &pem[start..])
            .expect("the home is writable");
    }

    /// Starts `kohakuriver runner` with its state in `DATA/<name>`.
    pub fn runner(&self, name: &str, arguments: &[&str]) -> Server {
        let mut command = self.command();
        command.args(["runner", "--name", name, "--data-dir"]).arg(self.runner_dir(name));
        Server::start(command.args(arguments))
    }

    pub fn runner_dir(&self, name: &str) -> PathBuf {
        self.data_dir().join(name)
    }

    /// Our containers of this site.
    pub fn containers(&self) -> Vec<String> {
        containers_under(self.path())
    }

    /// Plain OpenSSH, jumping through the gateway, with this site's key and no questions.
    pub fn plain_ssh(&self, program: &str, key: &Path) -> Command {
        let config = self.path().join("ssh_config");
        let text = format!(
            "Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile {known}\n  LogLevel ERROR\n\
             \x20 BatchMode yes\n  IdentitiesOnly yes\n  IdentityFile {key}\n\
             Host !127.0.0.1 *\n  ProxyJump you@127.0.0.1:{port}\n",
            known = self.path().join("known_hosts").display(),
            key = key.display(),
            port = self.ssh_port,
        );
        fs::write(&config, text).expect("the site is writable");
        let mut command = Command::new(program);
        command.arg("-F").arg(config);
        command
    }

    /// Makes a key pair outside the home directory and returns the private half's path.
    pub fn make_key(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        let mut keygen = Command::new("ssh-keygen");
        run(keygen.args(["-qt", "ed25519", "-N", "", "-f"]).arg(&path)).ok();
        path
    }

    /// The private key that `vps create --ssh` made for a VPS.
    pub fn key_of(&self, task_id: &str) -> PathBuf {
        self.home().join(format!(".ssh/id-kohakuriver-{task_id}"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for qemu in Qemu::all_under(&self.data_dir()) {
            qemu.kill();
        }
        let bridge = self.bridge();
        // A TAP stays when QEMU and bridge are gone.
        for tap in self.taps() {
            let _ = run(Command::new("ip").args(["link", "del", &tap]));
        }
        if Path::new("/sys/class/net").join(&bridge).exists() {
            let _ = run(Command::new("ip").args(["link", "del", &bridge]));
        }
        for name in self.containers() {
            let _ = run(Command::new("docker").args(["rm", "--force", &name]));
        }
        let network = self.container_network();
        let _ = run(Command::new("docker").args(["network", "rm", &network]));
        let table = format!("kohakuriver-{network}");
        let _ = run(Command::new("nft").args(["delete", "table", "inet", &table]));
        unmount_shared_storage(self.path());
    }
}

/// `KOHAKURIVER_BIN`, or the executable that was built beside this test.
pub fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("KOHAKURIVER_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a test knows its own file");
    let dir = test.ancestors().nth(2).expect("tests are two levels below the target directory");
    let path = dir.join("kohakuriver");
    assert!(path.exists(), "build it first: cargo build -p kohakuriver (no {})", path.display());
    path
}
