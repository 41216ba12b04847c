//! What belongs to a container's disk: also what engines keep beside it.

use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Output, Site, run, wait_until};

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments)).ok().trim().to_owned()
}

fn inside(site: &Site, name: &str, line: &str) -> Output {
    site.kr(&["terminal", "exec", name, "--", "sh", "-c", line])
}

/// An image that goes with the test.
struct Image(String);

impl Image {
    fn with(change: &str) -> Self {
        let number = std::process::id();
        let name = format!("kohakuriver-test/disk{number}:1");
        let container = docker(&["create", BUSYBOX]);
        docker(&["commit", "--change", change, &container, &name]);
        docker(&["rm", &container]);
        Self(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = run(Command::new("docker").args(["rmi", "--force", &self.0]));
    }
}

#[test]
fn image_volumes_are_saved_restored_and_copied() {
    let mut site = Site::new();
    let _server = site.up();
    let image = Image::with("VOLUME /data");
    site.kr(&["vps", "create", "--name", "vol", "--image", &image.0, "--snapshot-on-stop"]).ok();
    let write = |text: &str| {
        inside(&site, "vol", &format!("mkdir -p /data; echo {text} >/data/state")).ok();
    };
    write("1");
    site.kr(&["vps", "snapshot", "create", "vol", "--name", "one"]).ok();
    let again = site.kr(&["vps", "snapshot", "create", "vol", "--name", "one"]);
    again.fails(1, &["already has a snapshot named 'one'", "hint"]);
    write("2");
    site.kr(&["vps", "stop", "vol"]).ok();
    let newest = site.json(&["vps", "snapshot", "list", "vol"]);
    assert!(newest.to_string().contains("made at stop"), "{newest}");
    site.kr(&["vps", "snapshot", "restore", "vol", "one", "--yes"]).ok();
    assert_eq!(inside(&site, "vol", "cat /data/state").ok(), "1\n");
    site.kr(&["vps", "snapshot", "restore", "vol", "latest", "--yes"]).ok();
    assert_eq!(inside(&site, "vol", "cat /data/state").ok(), "2\n");
    site.kr(&["vps", "create", "--name", "copy", "--from-snapshot", "vol@one"]).ok();
    assert_eq!(inside(&site, "copy", "cat /data/state").ok(), "1\n");
    for name in ["copy", "vol"] {
        site.kr(&["vps", "delete", name, "--force", "--yes"]).ok();
    }
}

#[test]
fn disk_that_hangs_the_engine_is_not_started() {
    let mut site = Site::new();
    let _server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--image", BUSYBOX]).ok();
    site.kr(&["vps", "snapshot", "create", "web", "--name", "good"]).ok();
    inside(&site, "web", "rm /etc/passwd; mkfifo /real; ln -s ../real /etc/passwd").ok();
    site.kr(&["vps", "restart", "web"]).fails(1, &["/etc/passwd on its disk is no plain file"]);
    // Neither it nor the engine hangs.
    site.kr(&["vps", "create", "--name", "other", "--image", BUSYBOX]).ok();
    site.kr(&["vps", "snapshot", "restore", "web", "good", "--yes"]).ok();
    assert_eq!(inside(&site, "web", "echo well").ok(), "well\n");
    inside(&site, "web", "rm /etc/group; mkfifo /etc/group").ok();
    site.kr(&["vps", "restart", "web"]).fails(1, &["/etc/group on its disk is no plain file"]);
    site.kr(&["vps", "delete", "web", "--force", "--yes"]).ok();
    wait_until("it is gone", Duration::from_secs(60), || site.status("web").is_empty());
}
