//! What people do with ssh, done with the programs they do it with.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kohakuriver_e2e::{BUSYBOX, Site, run};

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
        let start = Instant::now();
        run(&mut within(5, &jump("true"))).ok();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    run(site.plain_ssh("ssh", &key).args(["-O", "exit"]).args(gateway)).ok();
}
