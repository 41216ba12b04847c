//! The executable of the previous version (`KOHAKURIVER_PREVIOUS_BIN`) beside this one: a data
//! directory with running VPSes is taken over, and host and runner of the two versions work together.
//!
//! `make test-upgrade` builds the previous version and runs this; it is no part of `make test`.

#![expect(clippy::unwrap_used, reason = "a test that is surprised should end there")]

use std::path::PathBuf;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Site, wait_until};
use serde_json::Value;

const BOOT: Duration = Duration::from_secs(120);

fn previous() -> PathBuf {
    let path = std::env::var_os("KOHAKURIVER_PREVIOUS_BIN");
    path.expect("KOHAKURIVER_PREVIOUS_BIN names the previous version's executable").into()
}

fn create(site: &Site, name: &str) {
    site.kr(&["vps", "create", "--name", name, "--ssh", "--image", BUSYBOX]).ok();
}

fn create_vm(site: &Site, name: &str) {
    let arguments = ["vps", "create", "--backend", "qemu", "--vm-image", "micro", "--name", name];
    let size = ["--vm-memory", "160", "--vm-disk", "1", "-c", "1", "--ssh"];
    site.kr(&[&arguments[..], &size].concat()).ok();
}

fn inside(site: &Site, name: &str, line: &str) -> String {
    site.kr(&["terminal", "exec", name, "--", "sh", "-c", line]).ok()
}

fn is_running(site: &Site, name: &str) {
    wait_until(name, BOOT, || site.status(name) == "running");
}

fn id_and_start(site: &Site, name: &str) -> (Value, Value) {
    let task = site.json(&["vps", "status", name]);
    (task["task_id"].clone(), task["started_at"].clone())
}

#[test]
fn data_directory_of_previous_version_is_taken_over() {
    let mut site = Site::new().with_micro_image();
    site.use_executable(Some(previous()));
    let before = site.up();
    for name in ["web", "resting"] {
        create(&site, name);
    }
    create_vm(&site, "vm");
    inside(&site, "web", "echo container >/root/file");
    inside(&site, "vm", "echo machine >/root/file; sync");
    site.kr(&["vps", "snapshot", "create", "web", "--name", "first"]).ok();
    site.kr(&["vps", "stop", "resting"]).ok();
    let known = ["web", "vm"].map(|name| id_and_start(&site, name));
    before.kill();

    site.use_executable(None);
    let _after = site.up();
    for name in ["web", "vm"] {
        is_running(&site, name);
    }
    // The same instances, and neither was started again.
    assert_eq!(["web", "vm"].map(|name| id_and_start(&site, name)), known);
    assert_eq!(site.status("resting"), "stopped");
    // This version's host and runner, the previous version's agents.
    assert_eq!(inside(&site, "web", "cat /root/file").trim(), "container");
    assert_eq!(inside(&site, "vm", "cat /root/file").trim(), "machine");
    let ssh = site.kr(&["ssh", "web", "--", "cat /root/file"]).ok();
    assert_eq!(ssh.trim(), "container");
    let snapshots = site.json(&["vps", "snapshot", "list", "web"]);
    assert_eq!(snapshots.as_array().or(snapshots["snapshots"].as_array()).unwrap().len(), 1);
    // This version's agents on the previous version's disks.
    for name in ["web", "resting", "vm"] {
        site.kr(&["vps", "restart", name]).ok();
        is_running(&site, name);
    }
    wait_until("the machine's agent", BOOT, || {
        site.kr(&["terminal", "exec", "vm", "--", "cat", "/root/file"]).stdout.trim() == "machine"
    });
    assert_eq!(inside(&site, "web", "cat /root/file").trim(), "container");
    create(&site, "new");
    assert_eq!(inside(&site, "new", "echo $((6 * 7))").trim(), "42");
    for name in ["web", "resting", "vm", "new"] {
        site.kr(&["vps", "delete", name, "--yes", "--force"]).ok();
    }
    wait_until("everything is deleted", BOOT, || site.containers().is_empty());
}

#[test]
fn host_and_runner_of_two_versions_work_together() {
    for (host, runner) in [(None, Some(previous())), (Some(previous()), None)] {
        let mut site = Site::new();
        site.use_executable(host);
        let _host = site.host();
        let token = site.json(&["node", "token", "create"])["token"].as_str().unwrap().to_owned();
        site.use_executable(runner);
        let mut node = site.runner("n1", &["--join", &token]);
        node.wait_for_line("connected to the host");
        create(&site, "web");
        assert_eq!(inside(&site, "web", "echo $((6 * 7))").trim(), "42");
        site.kr(&["vps", "snapshot", "create", "web", "--name", "first"]).ok();
        site.kr(&["vps", "pause", "web"]).ok();
        site.kr(&["vps", "resume", "web"]).ok();
        assert_eq!(site.kr(&["ssh", "web", "--", "echo in"]).ok().trim(), "in");
        site.kr(&["vps", "delete", "web", "--yes", "--force"]).ok();
        wait_until("it is deleted", BOOT, || site.containers().is_empty());
    }
}
