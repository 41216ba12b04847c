//! Accidents: anything killed at any point, an engine that goes away, a full disk.

use std::process::Stdio;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Relay, Server, Site, SmallDisk, wait_until};

/// Starts a create in the background; how it ends is not the question.
fn begin_create(site: &Site, name: &str) -> std::process::Child {
    site.command()
        .args(["vps", "create", "--name", name, "--image", BUSYBOX, "--ssh"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// After an accident: every VPS is running or failed, each with one container or none, and
/// deleting all of them leaves nothing at all.
fn settle_and_clear(site: &Site) {
    let list = || site.json(&["vps", "list", "--all"]).as_array().unwrap().clone();
    wait_until("everything is settled", Duration::from_secs(20), || {
        list().iter().all(|task| {
            matches!(task["status"].as_str(), Some("running" | "failed"))
                && task["transition"].is_null()
        })
    });
    let running = list().iter().filter(|task| task["status"] == "running").count();
    assert_eq!(site.containers().len(), running, "one container for each that runs: {:?}", list());
    for task in list() {
        let id = task["task_id"].as_str().unwrap();
        if task["status"] == "running" {
            // Not by ssh: a client killed before it heard the id left its key under another name.
            site.kr(&["terminal", "exec", id, "--", "true"]).ok();
        }
        // One that its own client cleared away meanwhile is gone, which is fine.
        let _ = site.kr(&["vps", "delete", id, "--yes", "--force"]);
    }
    wait_until("nothing is left", Duration::from_secs(20), || {
        list().is_empty() && site.containers().is_empty()
    });
    assert_eq!(site.json(&["node", "list"])[0]["cores_in_use"], 0);
}

#[test]
fn killing_host_and_runner_at_any_point_of_a_create_neither_doubles_nor_orphans() {
    let mut site = Site::new();
    let mut server = site.up();
    for round in 0..8u64 {
        let mut client = begin_create(&site, &format!("r{round}"));
        std::thread::sleep(Duration::from_millis(30 + round * 60));
        server.kill();
        let _ = client.kill();
        let _ = client.wait();
        server = site.up();
        settle_and_clear(&site);
    }
    assert_eq!(server.interrupt(), 0);
}

#[test]
fn killing_only_the_runner_at_any_point_of_a_create_converges() {
    let mut site = Site::new();
    let _host = site.host();
    let token = site.json(&["node", "token", "create"])["token"].as_str().unwrap().to_owned();
    let mut runner = site.runner("n1", &["--join", &token]);
    runner.wait_for_line("connected to the host");
    for round in 0..6u64 {
        let mut client = begin_create(&site, &format!("r{round}"));
        std::thread::sleep(Duration::from_millis(40 + round * 70));
        runner.kill();
        runner = site.runner("n1", &[]);
        runner.wait_for_line("connected to the host");
        let _ = client.wait();
        settle_and_clear(&site);
    }
}

#[test]
fn an_engine_that_dies_in_the_middle_is_said_and_everything_converges_when_it_is_back() {
    let mut site = Site::new();
    let relay = Relay::start(site.path());
    let _server = site.up_with(&["--docker-socket", relay.socket().to_str().unwrap()]);
    site.kr(&["vps", "create", "--name", "old", "--ssh", "--image", BUSYBOX]).ok();
    for round in 0..3u64 {
        let mut client = begin_create(&site, &format!("r{round}"));
        std::thread::sleep(Duration::from_millis(60 + round * 120));
        relay.cut();
        let _ = client.wait();
        site.kr(&["ssh", "old", "--", "true"]).ok();
        relay.mend();
        let list = || site.json(&["vps", "list", "--all"]).as_array().unwrap().clone();
        wait_until("the rest is settled", Duration::from_secs(30), || {
            list().iter().all(|task| {
                task["transition"].is_null()
                    && matches!(task["status"].as_str(), Some("running" | "failed"))
            })
        });
        for task in list().iter().filter(|task| task["name"] != "old") {
            let id = task["task_id"].as_str().unwrap();
            let _ = site.kr(&["vps", "delete", id, "--yes", "--force"]);
        }
        wait_until("one container is left", Duration::from_secs(20), || {
            site.containers().len() == 1
        });
    }
    site.kr(&["ssh", "old", "--", "true"]).ok();
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_half_made() {
    let mut site = Site::new();
    let disk = SmallDisk::mount(site.data_dir(), 400);
    let server: Server = site.up();
    disk.fill();
    let refused = site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("full") || refused.stderr.contains("space"), "{refused:?}");
    disk.free();
    wait_until("nothing is left", Duration::from_secs(20), || {
        site.json(&["vps", "list", "--all"]) == serde_json::json!([])
            && site.containers().is_empty()
    });
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    site.kr(&["vps", "delete", "web", "--yes", "--force"]).ok();
    server.kill();
    drop(disk);
}
