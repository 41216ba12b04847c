//! Idle memory of host, runner and agents.
//!
//! Resident memory counts pages of the executable that all of them share; an agent's own cost is
//! the memory private to its process (`Private_*` of `/proc/PID/smaps_rollup`).

use std::fs;
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Site, run as run_command};

use crate::sample::Line;

const VPSES: usize = 10;

pub fn run() -> Vec<Line> {
    let mut site = Site::new();
    let host = site.host();
    let token = site.json(&["node", "token", "create"])["token"].clone();
    let mut runner = site.runner("n1", &["--join", token.as_str().expect("a token is text")]);
    runner.wait_for_line("connected to the host");
    many(&site, VPSES);
    // Idle: what the creates needed has been given back.
    std::thread::sleep(Duration::from_secs(20));
    let agents: Vec<u32> = site.containers().iter().map(|name| main_process(name)).collect();
    let own = |pid: &u32| mebibytes(*pid, "smaps_rollup", &["Private_Clean:", "Private_Dirty:"]);
    let resident = |pid: u32| mebibytes(pid, "status", &["VmRSS:"]);
    vec![
        Line::new(format!("host, {VPSES} VPSes, resident"), "MiB", vec![resident(host.pid())]),
        Line::new(format!("runner, {VPSES} VPSes, resident"), "MiB", vec![resident(runner.pid())]),
        Line::new("agent, of its own", "MiB", agents.iter().map(own).collect()),
        Line::new("agent, resident", "MiB", agents.iter().map(|pid| resident(*pid)).collect()),
    ]
}

/// Creates that many VPSes and waits for them.
pub fn many(site: &Site, count: usize) {
    for number in 0..count {
        let name = format!("many-{number}");
        site.kr(&["vps", "create", "--name", &name, "--ssh", "--image", BUSYBOX]).ok();
    }
}

fn main_process(container: &str) -> u32 {
    let format = ["inspect", "--format", "{{.State.Pid}}", container];
    let text = run_command(Command::new("docker").args(format)).ok();
    text.trim().parse().expect("a pid is a number")
}

/// Sums fields of a file in `/proc/PID`, which are in KiB.
fn mebibytes(pid: u32, file: &str, fields: &[&str]) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process lives");
    let kibibytes: f64 = text
        .lines()
        .filter_map(|line| {
            let (field, rest) = line.split_once(char::is_whitespace)?;
            let number = rest.split_whitespace().next()?;
            fields.contains(&field).then(|| number.parse::<f64>().ok())?
        })
        .sum();
    kibibytes / 1024.0
}
