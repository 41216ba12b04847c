//! `vps create --privileged` on a node that has all rights to give: a machine with an engine of its
//! own. The engine of the machine that runs the tests may be confined itself, and refuses then
//! (`containment/unconfined.rs` knows both).
//!
//! ```text
//!  this machine:   kohakuriver up
//!    a machine:      dockerd, kohakuriver up --allow-privileged
//!      containers:     plain, deep (--privileged), copy (of deep's snapshot)
//! ```

use std::process::Command;
use std::time::{Duration, Instant};

use kohakuriver_e2e::{BUSYBOX, Output, Site, run, wait_until};
use serde_json::Value;

use super::{SLOW_BOOT, create, delete, disk_made, image};

const MACHINE: &str = "node";
/// The node's state, in the machine.
const DATA: &str = "/srv/river";
const PATIENCE: Duration = Duration::from_secs(180);
const THE_THIRTEEN: &str = "00000000a00425fb";

/// What all kernels of these distributions know; an engine may not know the three that came with
/// Linux 5.8, which `SYS_ADMIN` has in it.
const ALL_UP_TO_LINUX_5_7: u64 = (1 << 38) - 1;

/// The machine, as the node that it is.
struct Node<'a> {
    site: &'a Site,
    /// What its engine gives who is privileged.
    privileged: Rights,
}

impl Node<'_> {
    fn exec(&self, words: &[&str]) -> Output {
        exec(self.site, words)
    }

    /// Runs a line of shell as root of the node.
    #[track_caller]
    fn sh(&self, line: &str) -> String {
        self.exec(&["sh", "-c", line]).ok()
    }

    /// The command line, there.
    fn kr(&self, words: &[&str]) -> Output {
        self.exec(&[&["kohakuriver"], words].concat())
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let text = self.kr(&[words, &["--json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// Runs a line of shell as root in one of its VPSes.
    fn inside(&self, vps: &str, line: &str) -> Output {
        self.kr(&["terminal", "exec", vps, "--", "sh", "-c", line])
    }

    fn up(&self, flag: &str) {
        let line = format!("systemd-run --collect --unit=up kohakuriver up --data-dir {DATA}");
        self.sh(&format!("{line} {flag}"));
        let is_online = || {
            let listed = self.kr(&["node", "list", "--json"]).stdout;
            let nodes: Value = serde_json::from_str(&listed).unwrap_or_default();
            nodes[0]["status"] == "online"
        };
        wait_until("the node is up", PATIENCE, is_online);
        let allows = !flag.is_empty();
        assert_eq!(self.json(&["node", "list"])[0]["allows_privileged"], allows);
    }

    fn down(&self) {
        self.sh("systemctl stop up");
    }

    /// What the process that asks may, in a VPS.
    #[track_caller]
    fn rights(&self, vps: &str) -> Rights {
        let line = "cat /proc/self/status /proc/self/attr/current";
        Rights::read(&self.inside(vps, line).ok())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Rights {
    effective: String,
    bounding: String,
    no_new_privileges: String,
    seccomp: String,
    /// AppArmor's profile.
    profile: String,
}

impl Rights {
    #[track_caller]
    fn read(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
        };
        Self {
            effective: value("CapEff"),
            bounding: value("CapBnd"),
            no_new_privileges: value("NoNewPrivs"),
            seccomp: value("Seccomp"),
            profile: text.lines().last().unwrap_or_default().trim().to_owned(),
        }
    }

    fn new(capabilities: &str, seccomp: &str, profile: &str) -> Self {
        Self {
            effective: capabilities.to_owned(),
            bounding: capabilities.to_owned(),
            no_new_privileges: "0".to_owned(),
            seccomp: seccomp.to_owned(),
            profile: profile.to_owned(),
        }
    }
}

const MOUNT: &str = "mount -t tmpfs none /tmp && grep -q '^none /tmp tmpfs' /proc/mounts";
const DISK: &str = "head -c 65536 /dev/vda | sha256sum";

/// It may all that the engine has to give, and has the node's devices.
#[track_caller]
fn is_root_of_the_node(node: &Node, vps: &str) {
    assert_eq!(node.rights(vps), node.privileged);
    let line = format!("head -c 1 /dev/kmsg >/dev/null && {MOUNT} && umount /tmp && {DISK}");
    assert_eq!(node.inside(vps, &line).ok(), node.sh(DISK), "the node's disk can be read");
    assert_eq!(node.json(&["vps", "status", vps])["docker_privileged"], true);
}

#[track_caller]
fn is_confined(node: &Node, vps: &str) {
    assert_eq!(node.rights(vps), Rights::new(THE_THIRTEEN, "2", "docker-default (enforce)"));
    assert_eq!(node.inside(vps, "cd /dev && find . -type b; ls kmsg 2>/dev/null; true").ok(), "");
    let refused = node.inside(vps, MOUNT);
    refused.fails(1, &["permission denied"]);
    assert_eq!(node.json(&["vps", "status", vps])["docker_privileged"], false);
}

fn exec(site: &Site, words: &[&str]) -> Output {
    site.kr(&[&["terminal", "exec", MACHINE, "--"], words].concat())
}

/// What the machine's engine gives a container that is privileged: what its root has, but for what
/// the engine does not know.
fn privileged_there(site: &Site) -> Rights {
    let files = ["cat", "/proc/self/status", "/proc/self/attr/current"];
    let root = Rights::read(&exec(site, &files).ok());
    let all = Rights::new(&root.effective, "0", "unconfined");
    assert_eq!(root, all, "the machine is confined itself");
    let given =
        exec(site, &[&["docker", "run", "--rm", "--privileged", BUSYBOX], &files[..]].concat());
    let given = Rights::read(&given.ok());
    let [all, some] =
        [&all, &given].map(|rights| u64::from_str_radix(&rights.effective, 16).unwrap());
    assert!(some & all == some && some >= ALL_UP_TO_LINUX_5_7, "{given:?} of {root:?}");
    assert_eq!(given, Rights::new(&given.effective, "0", "unconfined"));
    given
}

/// Brings up the machine, with the executable, an engine and the tests' image in it.
fn machine(site: &Site) -> Node<'_> {
    create(site, MACHINE, "engine", "2048");
    let tar = site.path().join("busybox.tar");
    run(Command::new("docker").args(["save", BUSYBOX, "-o"]).arg(&tar)).ok();
    let tar = tar.to_str().unwrap();
    site.kr(&["vps", "cp", tar, &format!("{MACHINE}:/root/busybox.tar")]).ok();
    // What the agent there is: the executable that is tested.
    exec(site, &["install", "/run/kohakuriver/bin/kohakuriver", "/usr/local/bin/"]).ok();
    let starts = || exec(site, &["docker", "load", "-i", "/root/busybox.tar"]).code == 0;
    wait_until("the machine's engine is up", PATIENCE, starts);
    Node { site, privileged: privileged_there(site) }
}

#[test]
#[ignore = "takes minutes: make test-images"]
fn a_privileged_vps_is_root_of_its_node_and_others_there_are_not() {
    let mut site = Site::new();
    let disk = disk_made("engine");
    image(&site, &["import", disk.to_str().unwrap(), "--name", "engine"]);
    let server = site.up_with(&["--vm-boot-limit", SLOW_BOOT]);
    let begun = Instant::now();
    let node = machine(&site);
    eprintln!("a machine with an engine: {:?}", begun.elapsed());
    node.up("--allow-privileged");
    eprintln!("a node in it: {:?}", begun.elapsed());

    let new = ["vps", "create", "--image", BUSYBOX, "--name"];
    node.kr(&[&new[..], &["plain"]].concat()).ok();
    node.kr(&[&new[..], &["deep", "--privileged"]].concat()).ok();
    is_confined(&node, "plain");
    is_root_of_the_node(&node, "deep");
    let shown = ["plain", "deep"].map(|vps| node.kr(&["vps", "status", vps]).ok());
    assert_eq!(shown.map(|text| text.contains("root of the node")), [false, true]);
    eprintln!("VPSes in that: {:?}", begun.elapsed());

    // It stays so, and no other becomes so.
    for vps in ["plain", "deep"] {
        node.kr(&["vps", "stop", vps]).ok();
        node.kr(&["vps", "restart", vps]).ok();
    }
    is_confined(&node, "plain");
    is_root_of_the_node(&node, "deep");
    node.inside("deep", "echo kept >/root/file").ok();
    node.kr(&["vps", "snapshot", "create", "deep", "--name", "clean"]).ok();
    node.kr(&["vps", "snapshot", "restore", "deep", "clean", "--yes"]).ok();
    is_root_of_the_node(&node, "deep");
    node.kr(&["vps", "create", "--name", "copy", "--from-snapshot", "deep@clean"]).ok();
    assert_eq!(node.inside("copy", "cat /root/file").ok(), "kept\n");
    is_confined(&node, "copy");
    let log = node.kr(&["audit", "list"]).ok();
    assert!(log.contains("privileged"), "{log}");
    eprintln!("stopped, started, restored, copied: {:?}", begun.elapsed());

    // The node's owner takes it back: what runs runs on, and does not start again.
    node.down();
    node.up("");
    is_root_of_the_node(&node, "deep");
    node.kr(&[&new[..], &["more", "--privileged"]].concat()).fails(1, &["lets no VPS"]);
    let refused = node.kr(&["vps", "restart", "deep"]);
    refused.fails(1, &["lets no VPS be privileged", "--allow-privileged"]);
    node.kr(&["vps", "restart", "plain"]).ok();
    is_confined(&node, "plain");
    node.down();
    node.up("--allow-privileged");
    node.kr(&["vps", "restart", "deep"]).ok();
    is_root_of_the_node(&node, "deep");
    eprintln!("taken back and given again: {:?}", begun.elapsed());

    for vps in ["plain", "deep", "copy"] {
        node.kr(&["vps", "delete", vps, "--yes", "--force"]).ok();
    }
    let left = format!(
        "docker ps --all --quiet; docker images --quiet 'kohakuriver-snapshot/*'; \
         ls {DATA}/runner/instances; find /sys/fs/cgroup -name 'docker-*.scope'"
    );
    let is_clean = || node.sh(&left).is_empty();
    wait_until("nothing of them is left", PATIENCE, is_clean);
    node.down();
    assert!(!node.sh("cat /proc/mounts").contains(DATA));
    delete(&site, MACHINE);
    assert_eq!(server.interrupt(), 0);
    eprintln!("all: {:?}", begun.elapsed());
}
