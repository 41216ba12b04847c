//! People whose account, home or nameserver is not what programs expect.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Output, Site, run, run_with_input, wait_until};

/// No account of any machine that tests run on.
const UNKNOWN: u32 = 54_321;

/// The client command as a user that no file knows, without what a log-in sets.
fn as_unknown(site: &Site, arguments: &[&str]) -> Output {
    // The folders above the build are not everybody's.
    let program = site.path().join("kohakuriver");
    if !program.exists() {
        fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(site.command().get_program(), &program).unwrap();
        chown(site.home(), Some(UNKNOWN), Some(UNKNOWN)).unwrap();
    }
    let id = UNKNOWN.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program).args(arguments);
    let client = site.command();
    command.env_clear().envs(client.get_envs().filter_map(|(key, value)| Some((key, value?))));
    run(&mut command)
}

#[test]
fn user_without_account_has_every_command() {
    let mut site = Site::new();
    let _server = site.up();
    as_unknown(&site, &["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    assert!(as_unknown(&site, &["vps", "list"]).ok().contains("web"));
    assert!(as_unknown(&site, &["ssh", "config"]).ok().contains("Host kohakuriver-vps-"));
    assert!(as_unknown(&site, &["doctor"]).stdout.contains("ssh keys"));
    assert_eq!(as_unknown(&site, &["terminal", "exec", "web", "--", "echo", "in"]).ok(), "in\n");
    let events = as_unknown(&site, &["vps", "events", "web"]).ok();
    assert!(events.contains(&format!("{UNKNOWN}@")), "the number stands for a name: {events}");
}

#[test]
fn file_that_sudo_left_to_root_is_named_with_the_way_out() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    // As root, in the person's home.
    site.kr(&["ssh", "config"]).ok();
    let cache = site.home().join(".cache/kohakuriver");
    assert!(cache.exists());
    chown(site.home().join(".cache"), Some(UNKNOWN), Some(UNKNOWN)).unwrap();
    as_unknown(&site, &["vps", "list"]).ok();
    let refused = as_unknown(&site, &["ssh", "config"]);
    let hint = format!("sudo chown -R {UNKNOWN} {}", cache.display());
    refused.fails(2, &["Permission denied", "belongs to root", &hint]);
}

#[test]
fn ssh_is_given_the_uploaded_key_under_another_home() {
    let mut site = Site::new();
    let _server = site.up();
    let folder = site.home().join(".ssh");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    // A name that ssh does not try, in a home that is not the one of the user database.
    let key = folder.join("id_river");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).ok();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    assert_eq!(site.kr(&["ssh", "web", "--", "echo", "in"]).ok(), "in\n");
    let settings = site.kr(&["ssh", "config"]).ok();
    assert!(settings.contains(&format!("IdentityFile \"{}\"", key.display())), "{settings}");
}

/// The client with files of its own in the place of `/etc/hosts` and `/etc/resolv.conf`.
struct Names {
    hosts: PathBuf,
    resolv: PathBuf,
}

impl Names {
    fn new(site: &Site, hosts: &str, resolv: &str) -> Self {
        let names =
            Self { hosts: site.path().join("hosts"), resolv: site.path().join("resolv.conf") };
        fs::write(&names.hosts, hosts).unwrap();
        fs::write(&names.resolv, resolv).unwrap();
        names
    }

    fn kr(&self, site: &Site, arguments: &[&str]) -> Output {
        let script = "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && \
                      shift 2 && exec \"$@\"";
        let client = site.command();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&self.hosts).arg(&self.resolv);
        command.arg(client.get_program()).args(arguments).env_clear();
        command.envs(client.get_envs().filter_map(|(key, value)| Some((key, value?))));
        run(&mut command)
    }
}

#[test]
fn name_in_hosts_file_needs_no_nameserver() {
    let mut site = Site::new();
    let _server = site.up();
    let hosts = "127.0.0.1 river.test\n";
    let without = Names::new(&site, hosts, "");
    let list = ["--host", "river.test", "vps", "list", "--all", "--json"];
    assert_eq!(without.kr(&site, &list).ok(), "[]\n");
    let unknown = without.kr(&site, &["--host", "other.test", "vps", "list"]);
    unknown.fails(3, &["the name 'other.test' was not found"]);

    // One that takes questions and does not answer them.
    let mute = UdpSocket::bind("127.53.53.53:53").unwrap();
    mute.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let asked = || mute.recv(&mut [0; 512]).is_ok();
    let mute_names = Names::new(&site, hosts, "nameserver 127.53.53.53\noptions timeout:1\n");
    assert_eq!(mute_names.kr(&site, &list).ok(), "[]\n");
    assert!(!asked(), "the file has the answer");
    mute_names.kr(&site, &["--host", "other.test", "vps", "list"]).fails(3, &["not found"]);
    assert!(asked(), "what the file does not have is asked for");
}

#[test]
fn name_in_hosts_file_of_vps_is_forwarded_without_nameserver() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    let line = "echo 127.0.0.1 inside.test >> /etc/hosts; : > /etc/resolv.conf; \
                setsid nc -ll -p 7000 -e cat >/dev/null 2>&1 & echo started";
    site.kr(&["terminal", "exec", "web", "--", "sh", "-c", line]).ok();
    let settings = site.path().join("ssh.conf");
    site.kr(&["ssh", "config", "--output", settings.to_str().unwrap()]).ok();
    wait_until("the service is up", Duration::from_secs(60), || {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&settings).args(["-W", "inside.test:7000", "web"]);
        ssh.env("HOME", site.home());
        run_with_input(&mut ssh, b"ping\n").stdout == "ping\n"
    });
}

#[test]
fn lost_output_of_programs_and_files_is_said() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    let redirected = |to: &str, arguments: &[&str]| {
        let client = site.command();
        let mut command = Command::new("bash");
        let script = format!("\"$@\" {to}; exit ${{PIPESTATUS[0]}}");
        command.args(["-c", &script, "bash"]).arg(client.get_program()).args(arguments);
        command.env_clear().envs(client.get_envs().filter_map(|(key, value)| Some((key, value?))));
        run(&mut command)
    };
    for arguments in [
        &["terminal", "exec", "web", "--", "seq", "200000"][..],
        &["vps", "cp", "web:/bin/busybox", "-"],
        &["qemu", "check"],
        &["qemu", "image", "list", "--json"],
        &["--help"],
    ] {
        let full = redirected("> /dev/full", arguments);
        full.fails(1, &["standard output was not written", "No space left"]);
    }
    let gone = redirected("| head -1", &["terminal", "exec", "web", "--", "yes"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (141, "y\n"), "{}", gone.stderr);
    assert!(!gone.stderr.contains("error"), "{}", gone.stderr);
}
