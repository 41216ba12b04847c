//! What happens to the node under machines that run.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{MemoryLimit, Server, Site, SmallDisk, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{BOOT, create, inside, nothing_is_left, site};

/// Of nobody; no test's QEMU has it.
const USER: u32 = 1_800_000_001;

fn warning(site: &Site) -> String {
    site.json(&["vps", "status", "vm"])["warning"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_machine_on_a_full_disk_stands_still_and_goes_on_when_there_is_room() {
    let mut site = site();
    let disk = SmallDisk::mount(site.data_dir().join("runner/vm/disks"), 320);
    let _server = site.up();
    create(&site, "vm", &[]);
    let digest = "sha256sum </root/file";
    let zeroes = "head -c 48m </dev/zero | tr '\\0' x";
    let before = inside(&site, "vm", &format!("{zeroes} | sha256sum"));
    disk.fill();
    let write = format!("({zeroes} >/root/file; sync) </dev/null >/dev/null 2>&1 &");
    inside(&site, "vm", &write);
    wait_until("it stands still", BOOT, || warning(&site).contains("stands still"));
    assert_eq!((site.status("vm").as_str(), site.machines().len()), ("running", 1));
    disk.free();
    wait_until("it goes on", BOOT, || !warning(&site).contains("stands still"));
    let written = || site.kr(&["terminal", "exec", "vm", "--", "sh", "-c", digest]).stdout;
    wait_until("all of it is written", BOOT, || written() == before);
    let events = site.kr(&["vps", "status", "vm"]).ok();
    assert!(!events.contains("error"), "{events}");
    site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    nothing_is_left(&site);
}

#[test]
fn a_machine_that_the_nodes_kernel_killed_for_memory_is_told_as_that() {
    let mut site = site();
    let mut server = Some(site.up());
    for seen in [true, false] {
        let name = if seen { "seen" } else { "unseen" };
        create(&site, name, &[]);
        let qemu = site.machines()[0];
        let limit = MemoryLimit::on(qemu, 8 << 20);
        let eat = "mount -o remount,size=100% /tmp 2>/dev/null || mount -t tmpfs t /tmp; \
                   sleep 1; dd if=/dev/urandom of=/tmp/x bs=1M count=90";
        let mut eating = site.command();
        eating.args([
            "terminal",
            "exec",
            name,
            "--",
            "sh",
            "-c",
            &format!("({eat}) >/dev/null 2>&1 &"),
        ]);
        run(&mut eating).ok();
        if !seen && let Some(server) = server.take() {
            server.kill();
        }
        wait_until("it is killed", BOOT, || site.machines().is_empty());
        server = server.or_else(|| Some(site.up()));
        wait_until("it is told", Duration::from_secs(10), || site.status(name) == "killed_oom");
        drop(limit);
        site.kr(&["vps", "restart", name]).ok();
        assert_eq!(inside(&site, name, "echo on"), "on\n");
        site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
    }
    nothing_is_left(&site);
}

fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' '))).ok();
}

#[test]
fn a_network_device_that_is_removed_under_a_machine_comes_back() {
    let mut site = site();
    let mut server = site.up();
    create(&site, "vm", &[]);
    let qemu = site.machines();
    let tap = site.taps().remove(0);
    let again = |site: &Site, what: &str| {
        let answers = || site.kr(&["terminal", "exec", "vm", "--", "echo", "on"]).stdout == "on\n";
        wait_until(what, Duration::from_secs(15), || site.taps().len() == 1 && answers());
        assert_eq!(site.machines(), qemu, "it was not started again");
        assert_eq!(site.kr(&["ssh", "vm", "--", "hostname"]).ok(), "vm\n");
    };
    ip(&format!("link del {tap}"));
    again(&site, "the device is made again");
    // Much at once goes through what was made again.
    let sent = "head -c 20m </dev/zero | sha256sum";
    let got = inside(&site, "vm", sent);
    let pulled = format!("{} ssh vm -- 'head -c 20m </dev/zero' | sha256sum", site_command(&site));
    assert_eq!(run(Command::new("sh").args(["-c", &pulled])).ok(), got);
    ip(&format!("link set {tap} down"));
    again(&site, "the device is up again");
    ip(&format!("link set {tap} nomaster"));
    again(&site, "the device is on the bridge again");
    ip(&format!("link del {}", site.bridge()));
    again(&site, "the bridge is made again");

    // Nobody looked while it happened.
    server.kill();
    ip(&format!("link del {tap}"));
    server = site.up();
    again(&site, "the next runner makes the device again");

    // Where it cannot be mended, that is said, with what to do.
    ip(&format!("link del {tap}"));
    wait_until("it is there", Duration::from_secs(15), || site.taps().len() == 1);
    server.kill();
    ip(&format!("link del {tap}"));
    ip(&format!("tuntap add dev {tap} mode tap"));
    ip(&format!("link set dev {tap} alias somebody"));
    server = site.up();
    wait_until("it is said", Duration::from_secs(15), || {
        warning(&site).contains(&format!("ip link del {tap}"))
    });
    ip(&format!("link del {tap}"));
    again(&site, "the way is free again");
    assert!(!warning(&site).contains(&tap), "{}", warning(&site));
    site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    nothing_is_left(&site);
    assert_eq!(server.interrupt(), 0);
}

/// The site's command line, for a shell.
fn site_command(site: &Site) -> String {
    let command = site.command();
    let settings = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}='{}'", name.to_str()?, value?.to_str()?)));
    let settings: Vec<String> = settings.collect();
    format!("env -i {} {}", settings.join(" "), kohakuriver_e2e::executable().display())
}

/// Gives a tree to the user.
fn give(path: &Path) {
    chown(path, Some(USER), Some(USER)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
    }
}

/// The directories above it let others through.
fn open_up(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).unwrap();
}

#[test]
fn a_runner_that_is_not_root_has_machines_on_qemus_own_network() {
    let mut site = site();
    open_up(site.path());
    give(&site.data_dir());
    give(&site.home());
    let server = site.up_as(USER, &[]);
    let node = &site.json(&["node", "list"])[0];
    assert_ne!(node["vm_accel"], Value::Null, "{node}");
    create(&site, "vm", &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", site.machines()[0])).unwrap();
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}")), "{status}");
    assert_eq!(site.kr(&["ssh", "vm", "--", "hostname; id -un"]).ok(), "vm\nroot\n");
    let task = site.json(&["vps", "status", "vm"]);
    assert_eq!(task["vm_ip"], Value::Null, "nobody reaches it by an address of its own");
    // It reaches nothing of the node, which trusts who comes by loopback.
    let ask = format!(
        "printf 'GET /api/health HTTP/1.0\\r\\n\\r\\n' | nc -w 5 10.0.2.2 {} | head -n 1; true",
        site.port()
    );
    assert_eq!(inside(&site, "vm", &ask), "");
    inside(&site, "vm", "echo kept >/root/file; sync");
    site.kr(&["vps", "snapshot", "create", "vm", "--name", "one"]).ok();
    site.kr(&["vps", "stop", "vm"]).ok();
    site.kr(&["vps", "restart", "vm"]).ok();
    let qemu = site.machines();

    // The next runner takes it up, and lets it out where that is wished for.
    server.kill();
    let server = site.up_as(USER, &["--vm-open-network"]);
    wait_until("it is taken up", BOOT, || site.status("vm") == "running");
    assert_eq!(site.machines(), qemu);
    assert_eq!(inside(&site, "vm", "cat /root/file"), "kept\n");
    site.kr(&["vps", "restart", "vm"]).ok();
    let answer = inside(&site, "vm", &ask);
    assert!(answer.starts_with("HTTP/1."), "{answer}");
    site.kr(&["vps", "delete", "vm", "--yes", "--force"]).ok();
    wait_until("nothing is left", Duration::from_secs(20), || {
        site.machines().is_empty() && fs::read_dir(disks_dir(&site)).unwrap().count() == 0
    });
    drop::<Server>(server);
}

fn disks_dir(site: &Site) -> PathBuf {
    site.data_dir().join("runner/vm/disks")
}

#[test]
fn after_a_reboot_of_the_node_what_ran_runs_again_with_its_disk_and_what_was_stopped_does_not() {
    let mut site = site();
    let server = site.up();
    create(&site, "vm", &[]);
    create(&site, "off", &[]);
    site.kr(&["vps", "create", "--name", "box"]).ok();
    for name in ["vm", "box", "off"] {
        inside(&site, name, &format!("echo {name} >/root/kept; sync"));
    }
    site.kr(&["vps", "stop", "off"]).ok();
    let before = site.machines();
    let address = |site: &Site| site.json(&["vps", "status", "vm"])["vm_ip"].clone();
    let had = address(&site);

    // What a reboot takes: processes, devices, filter rules.
    server.kill();
    for pid in &before {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    run(Command::new("docker").args(["kill", &site.containers()[0]])).ok();
    wait_until("QEMU is gone", BOOT, || site.machines().is_empty());
    for device in site.taps().iter().chain([&site.bridge()]) {
        ip(&format!("link del {device}"));
    }
    for family in ["inet", "bridge"] {
        let table = format!("kohakuriver-{}", site.bridge());
        run(Command::new("nft").args(["delete", "table", family, &table])).ok();
    }

    let _server = site.up_after_reboot();
    for name in ["vm", "box"] {
        let is_back = || site.kr(&["terminal", "exec", name, "--", "cat", "/root/kept"]).stdout;
        wait_until("it is back, with its files", BOOT, || is_back() == format!("{name}\n"));
        assert_eq!(site.status(name), "running");
    }
    let now = site.machines();
    assert_eq!((now.len(), now == before, address(&site)), (1, false, had));
    assert_eq!(site.kr(&["ssh", "vm", "--", "hostname"]).ok(), "vm\n");
    assert_eq!(site.status("off"), "stopped");
    site.kr(&["vps", "restart", "off"]).ok();
    assert_eq!(inside(&site, "off", "cat /root/kept"), "off\n");
    for name in ["vm", "off", "box"] {
        site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
    }
    nothing_is_left(&site);
}
