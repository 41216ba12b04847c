//! What people do with ssh, done with the programs they do it with.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, DEBIAN, Server, Site, run, run_with_input, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// Ends when it is dropped, however the test goes.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command, ended after that many seconds, so that what hangs fails its test.
fn within(seconds: u32, command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg(seconds.to_string()).arg(command.get_program()).args(command.get_args());
    limited
}

#[test]
fn a_jump_that_does_not_read_keeps_no_other_jump_of_its_connection_waiting() {
    let mut site = Site::new();
    let _server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let key = site.key_of(task["task_id"].as_str().unwrap());
    site.kr(&["vps", "create", "--name", "frozen", "--ssh", "--image", BUSYBOX]).ok();
    let control = format!("ControlPath={}", site.path().join("control").display());
    let port = site.ssh_port().to_string();
    let gateway = ["-o", &control, "-p", &port, "you@127.0.0.1"];
    run(site.plain_ssh("ssh", &key).arg("-MNf").args(gateway)).ok();
    let through = format!("ProxyCommand=ssh -F none -o {control} -p {port} -W %h:%p you@127.0.0.1");
    let jump = |command: &str| {
        let mut ssh = site.plain_ssh("ssh", &key);
        ssh.args(["-o", "ProxyJump=none", "-o", &through, "root@web", command]);
        ssh
    };
    // The one end reads nothing, the other sends until every buffer and window on the way is full.
    let mut stuck = site.plain_ssh("ssh", &key);
    stuck.args(["-W", "frozen:22"]).args(gateway).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut stuck = Background(stuck.spawn().unwrap());
    stuck.0.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    site.kr(&["vps", "pause", "frozen"]).ok();
    let mut input = stuck.0.stdin.take().unwrap();
    std::thread::spawn(move || while input.write_all(&[0; 65536]).is_ok() {});
    // And one that is not read from: the agent's output stands in the gateway's connection.
    let mut unread = Background(jump("cat /dev/zero").stdout(Stdio::piped()).spawn().unwrap());
    unread.0.stdout.as_mut().unwrap().read_exact(&mut [0; 1000]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    for _ in 0..3 {
        // Held up, it would be so for good.
        run(&mut within(60, &jump("true"))).ok();
    }
    run(site.plain_ssh("ssh", &key).args(["-O", "exit"]).args(gateway)).ok();
}

/// A VPS of a whole distribution, and how to get into it as a user of its own.
struct Vps {
    site: Site,
    _server: Server,
    key: PathBuf,
}

impl Vps {
    fn start() -> Self {
        let mut site = Site::new();
        let server = site.up();
        let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", DEBIAN]);
        let key = site.key_of(task["task_id"].as_str().unwrap());
        site.kr(&["ssh", "web", "--", "useradd -m -s /bin/bash ann"]).ok();
        Self { site, _server: server, key }
    }

    fn command(&self, program: &str) -> Command {
        self.site.plain_ssh(program, &self.key)
    }

    fn ssh(&self, options: &[&str], user: &str, command: &str) -> Command {
        let mut ssh = self.command("ssh");
        ssh.args(options).arg(format!("{user}@web"));
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    /// A connection that runs nothing, and the option by which others use it.
    fn master(&self, user: &str, options: &[&str]) -> (Background, String) {
        let control = self.path("control");
        let option = format!("ControlPath={}", control.display());
        let all = ["-NM", "-o", &option, "-o", "ExitOnForwardFailure=yes"];
        let process = self.ssh(&[&all[..], options].concat(), user, "").spawn().unwrap();
        wait_until("the master is up", SOON, || control.exists());
        (Background(process), option)
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

fn same(one: &Path, other: &Path) {
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} changed", other.display());
}

#[test]
fn scp_sftp_and_rsync_copy_both_ways_and_go_on_where_they_were_cut() {
    let vps = Vps::start();
    let (there, back) = (vps.path("there"), vps.path("back"));
    fs::write(&there, noise(6_000_000)).unwrap();
    for mode in ["-s", "-O"] {
        run(vps.command("scp").arg(mode).arg(&there).arg("ann@web:copy")).ok();
        run(vps.command("scp").arg(mode).arg("ann@web:copy").arg(&back)).ok();
        same(&there, &back);
        fs::remove_file(&back).unwrap();
    }
    // The first half is there already.
    fs::write(&back, &fs::read(&there).unwrap()[..3_000_000]).unwrap();
    let batch = format!("reget copy {}\n", back.display());
    run_with_input(vps.command("sftp").args(["-b", "-", "ann@web"]), batch.as_bytes()).ok();
    same(&there, &back);

    let shell = format!("ssh -F {}", vps.path("ssh_config").display());
    let rsync = |from: &str, to: &str, options: &[&str]| {
        run(Command::new("rsync")
            .args(["-a", "--stats", "-e", &shell])
            .args(options)
            .args([from, to]))
    };
    fs::create_dir(vps.path("tree")).unwrap();
    for n in 0..100 {
        fs::write(vps.path("tree").join(format!("file {n}")), n.to_string()).unwrap();
    }
    let (tree, copy) = (vps.path("tree"), vps.path("tree-back"));
    rsync(&format!("{}/", tree.display()), "ann@web:tree/", &[]).ok();
    rsync("ann@web:tree/", &format!("{}/", copy.display()), &[]).ok();
    run(Command::new("diff").arg("-r").args([&tree, &copy])).ok();

    let (local, remote) = (there.display().to_string(), "ann@web:cut");
    let mut cut = Command::new("timeout");
    cut.args(["--signal", "INT", "1.5", "rsync", "--partial", "--bwlimit=2000", "-e", &shell]);
    assert_ne!(run(cut.args([&local, remote])).code, 0, "it was cut");
    let stats = rsync(&local, remote, &["--partial", "--no-whole-file"]).ok();
    let matched = stats.lines().find(|line| line.starts_with("Matched data:")).unwrap();
    assert!(!matched.contains(": 0 "), "nothing was left to go on from: {stats}");
    rsync(remote, &back.display().to_string(), &["--ignore-times"]).ok();
    same(&there, &back);
}

#[test]
fn connections_are_forwarded_both_ways_as_the_user_that_logged_in() {
    let vps = Vps::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello\n");
        }
    });
    let remote = format!("7001:127.0.0.1:{here}");
    let remote_socket = format!("/home/ann/remote.sock:127.0.0.1:{here}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let local = format!("{port}:localhost:7001");
    let socket = vps.path("local.sock");
    let local_socket = format!("{}:/home/ann/remote.sock", socket.display());
    let forwards = ["-R", &remote, "-R", &remote_socket, "-L", &local, "-L", &local_socket];
    let (master, control) = vps.master("ann", &forwards);
    let said = |mut stream: Box<dyn Read>| {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    // There and back again, by port and by socket.
    assert_eq!(said(Box::new(TcpStream::connect(("127.0.0.1", port)).unwrap())), "hello\n");
    assert_eq!(said(Box::new(UnixStream::connect(&socket).unwrap())), "hello\n");
    let inside = "cat < /dev/tcp/127.0.0.1/7001; stat -c '%U %a' remote.sock";
    let shown = run(&mut vps.ssh(&["-o", &control], "ann", inside)).ok();
    assert_eq!(shown, "hello\nann 600\n");
    let through = run(&mut vps.ssh(&["-o", &control, "-W", "localhost:7001"], "ann", ""));
    assert_eq!(through.stdout, "hello\n");
    let cancel = vps.ssh(&["-o", &control, "-O", "cancel", "-R", &remote], "ann", "").status();
    assert!(cancel.unwrap().success());
    let closed = vps.ssh(&["-o", &control], "ann", "! true < /dev/tcp/127.0.0.1/7001");
    run(&mut within(5, &closed)).ok();
    drop(master);
    wait_until("the socket is gone", SOON, || {
        run(&mut vps.ssh(&[], "ann", "test ! -e remote.sock")).code == 0
    });
    // Not where ann has no rights, nor below 1024.
    for refused in [format!("/etc/x.sock:127.0.0.1:{here}"), format!("80:127.0.0.1:{here}")] {
        let options = ["-o", "ExitOnForwardFailure=yes", "-R", &refused];
        assert_ne!(run(&mut vps.ssh(&options, "ann", "true")).code, 0, "{refused}");
    }
}

#[test]
fn the_clients_keys_its_own_file_of_keys_and_its_signals_work_inside() {
    let vps = Vps::start();
    let agent = vps.path("agent.sock");
    let mut ssh_agent = Command::new("ssh-agent");
    let _agent =
        Background(ssh_agent.arg("-Da").arg(&agent).stdout(Stdio::null()).spawn().unwrap());
    wait_until("the key agent listens", SOON, || agent.exists());
    let second = vps.site.make_key("second");
    run(Command::new("ssh-add").arg("-q").arg(&second).env("SSH_AUTH_SOCK", &agent)).ok();
    // With the forwarded key from inside to inside, where it is in the user's own file of keys.
    let public = fs::read(second.with_extension("pub")).unwrap();
    let add = "mkdir -pm 700 .ssh && cat > .ssh/authorized_keys && chmod 600 .ssh/authorized_keys";
    run_with_input(&mut vps.ssh(&[], "ann", add), &public).ok();
    let hop = "stat -c %a $(dirname $SSH_AUTH_SOCK); \
               ssh -o StrictHostKeyChecking=no -o LogLevel=ERROR ann@127.0.0.1 'id -un; echo ${SSH_AUTH_SOCK-none}'";
    let mut ssh = vps.ssh(&["-A"], "ann", hop);
    let shown = run(ssh.env("SSH_AUTH_SOCK", &agent)).ok();
    assert_eq!(shown, "700\nann\nnone\n");
    wait_until("no socket is left", SOON, || {
        run(&mut vps.ssh(&[], "root", "ls -d /tmp/ssh-*")).code != 0
    });

    let killed = run(&mut vps.ssh(&["-v"], "ann", "kill -USR1 $$"));
    assert!(killed.stderr.contains("exit-signal") && killed.code == 255, "{killed:?}");
    let first = Command::new("sh")
        .args(["-c", "timeout 10 \"$@\" | head -1", "sh", "ssh", "-F"])
        .arg(vps.path("ssh_config"))
        .args(["ann@web", "yes"])
        .output()
        .unwrap();
    assert_eq!(first.stdout, b"y\n");
    wait_until("yes has ended", SOON, || run(&mut vps.ssh(&[], "ann", "pgrep -x yes")).code != 0);
    let script = run_with_input(&mut vps.ssh(&["-T"], "ann", "bash -s"), b"cd /; pwd; echo $0");
    assert_eq!(script.stdout, "/\nbash\n");
    // Into the background, and away by its control socket.
    let control = format!("ControlPath={}", vps.path("background").display());
    let mut background = vps.ssh(&["-f", "-N", "-M", "-o", &control], "ann", "");
    background.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(background.status().unwrap().success());
    run(&mut vps.ssh(&["-o", &control, "-O", "exit"], "ann", "")).ok();
}

#[test]
fn the_host_key_stays_through_restart_restore_and_a_restart_of_everything() {
    let mut site = Site::new();
    let server = site.up();
    let task = site.json(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    let key = site.key_of(task["task_id"].as_str().unwrap());
    let known = site.path().join("pinned");
    let host_key = site.json(&["vps", "status", "web"])["ssh_host_key"].clone();
    fs::write(&known, format!("web {}\n", host_key.as_str().unwrap())).unwrap();
    let check = |site: &Site, after: &str| {
        let mut ssh = site.plain_ssh("ssh", &key);
        ssh.args(["-o", "StrictHostKeyChecking=yes", "-o"]);
        ssh.arg(format!("UserKnownHostsFile={}", known.display()));
        assert_eq!(run(ssh.args(["root@web", "echo in"])).ok(), "in\n", "{after}");
    };
    check(&site, "create");
    site.kr(&["vps", "restart", "web"]).ok();
    check(&site, "restart");
    site.kr(&["vps", "snapshot", "create", "web", "--name", "one"]).ok();
    site.kr(&["vps", "snapshot", "restore", "web", "one", "--yes"]).ok();
    check(&site, "restore");
    assert_eq!(server.interrupt(), 0);
    let _server = site.up();
    wait_until("it runs again", SOON, || site.status("web") == "running");
    check(&site, "a restart of host and runner");
    // Another key in its place is noticed: the checks above prove something.
    fs::write(&known, format!("web {}", fs::read_to_string(key.with_extension("pub")).unwrap()))
        .unwrap();
    let mut ssh = site.plain_ssh("ssh", &key);
    ssh.args(["-o", "StrictHostKeyChecking=yes", "-o"]);
    ssh.arg(format!("UserKnownHostsFile={}", known.display())).args(["root@web", "true"]);
    run(&mut ssh).fails(255, &["verification failed"]);
}
