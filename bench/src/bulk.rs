//! Copies of one gigabyte out of an instance and into it: through gateway and agent, with OpenSSH's sshd in
//! the same container reached directly, and with that sshd as its own jump host, which is the same
//! work done by OpenSSH alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::beside::Beside;
use crate::sample::{Line, timed};

const ROUNDS: usize = 10;
const BYTES: f64 = 1e9;
const SOURCE: &str = "head -c 1000000000 /dev/zero";
const SINK: &str = "cat >/dev/null";

pub fn run() -> Vec<Line> {
    let beside = Beside::start();
    let Beside { site, key, sshd, .. } = &beside;
    let through = || {
        let mut ssh = sshd.ssh();
        ssh.arg("-o").arg(format!("ProxyCommand={}", sshd.proxy_command()));
        ssh
    };
    let ours = || {
        let mut ssh = site.plain_ssh("ssh", key);
        ssh.arg("root@web");
        ssh
    };
    let mut figures = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        figures[0].push(rate(timed(|| download(&mut sshd.ssh()))));
        figures[1].push(rate(timed(|| download(&mut ours()))));
        figures[2].push(rate(timed(|| download(&mut through()))));
        figures[3].push(rate(timed(|| upload(&mut sshd.ssh()))));
        figures[4].push(rate(timed(|| upload(&mut ours()))));
        figures[5].push(rate(timed(|| upload(&mut through()))));
    }
    let [down_sshd, down_ours, down_jump, up_sshd, up_ours, up_jump] = figures;
    let down_sshd = Line::new("download 1 GB, sshd direct", "MB/s", down_sshd);
    let down_ours = Line::new("download 1 GB, ssh -J", "MB/s", down_ours).against(&down_sshd);
    let down_jump =
        Line::new("download 1 GB, sshd through sshd", "MB/s", down_jump).against(&down_sshd);
    let up_sshd = Line::new("upload 1 GB, sshd direct", "MB/s", up_sshd);
    let up_ours = Line::new("upload 1 GB, ssh -J", "MB/s", up_ours).against(&up_sshd);
    let up_jump = Line::new("upload 1 GB, sshd through sshd", "MB/s", up_jump).against(&up_sshd);
    vec![down_sshd, down_ours, down_jump, up_sshd, up_ours, up_jump]
}

fn rate(time: Duration) -> f64 {
    BYTES / 1e6 / time.as_secs_f64()
}

fn download(ssh: &mut Command) {
    let status = ssh.arg(SOURCE).stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert!(status.expect("ssh starts").success(), "the download failed");
}

fn upload(ssh: &mut Command) {
    let mut source = Command::new("sh")
        .args(["-c", SOURCE])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    let input = source.stdout.take().expect("it was piped");
    let status = ssh.arg(SINK).stdin(input).stdout(Stdio::null()).status();
    assert!(status.expect("ssh starts").success(), "the upload failed");
    let _ = source.wait();
}
