//! Running a program in an instance, and the echo time of a key.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{Terminal, run as run_command};

use crate::beside::Beside;
use crate::sample::{Line, timed};

const ROUNDS: usize = 30;
const KEYS: usize = 200;

pub fn run() -> Vec<Line> {
    let beside = Beside::start();
    let Beside { site, key, sshd, .. } = &beside;
    let container = site.containers()[0].clone();
    let [mut docker, mut ours, mut ssh_direct, mut ssh_ours] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let mut exec = Command::new("docker");
        exec.args(["exec", &container, "true"]);
        docker.push(timed(|| drop(run_command(&mut exec).ok())));
        let mut exec = site.command();
        exec.args(["terminal", "exec", "web", "--", "true"]);
        ours.push(timed(|| drop(run_command(&mut exec).ok())));
        ssh_direct.push(timed(|| drop(run_command(sshd.ssh().arg("true")).ok())));
        let mut ssh = site.command();
        ssh.args(["ssh", "web", "-i"]).arg(key).args(["--", "true"]);
        ssh_ours.push(timed(|| drop(run_command(&mut ssh).ok())));
    }
    let docker = Line::millis("docker exec true", &docker);
    let ours = Line::millis("kohakuriver terminal exec true", &ours).against(&docker);
    let ssh_direct = Line::millis("ssh true, sshd direct", &ssh_direct);
    let ssh_ours = Line::millis("kohakuriver ssh true", &ssh_ours).against(&ssh_direct);

    let mut connect = site.command();
    connect.args(["connect", "web"]);
    let mut ssh = sshd.ssh();
    ssh.arg("-tt");
    let direct = Line::millis("echo of a key, ssh to sshd direct", &echoes(&mut ssh));
    let through = Line::millis("echo of a key, kohakuriver connect", &echoes(&mut connect));
    let through = through.against(&direct);
    vec![docker, ours, ssh_direct, ssh_ours, direct, through]
}

/// Types letters into a shell one at a time, and waits for each echo.
fn echoes(command: &mut Command) -> Vec<Duration> {
    let (mut keyboard, _terminal) = Terminal::raw(command);
    // The shell's greeting and prompt come first.
    std::thread::sleep(Duration::from_millis(700));
    let mut screen = [0; 4096];
    let _ = keyboard.read(&mut screen);
    let mut times = Vec::with_capacity(KEYS);
    for _ in 0..KEYS {
        times.push(timed(|| {
            keyboard.write_all(b"x").expect("the terminal is there");
            while !matches!(keyboard.read(&mut screen), Ok(read) if screen[..read].contains(&b'x'))
            {
            }
        }));
        std::thread::sleep(Duration::from_millis(5));
    }
    times
}
