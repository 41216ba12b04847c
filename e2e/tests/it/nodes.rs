//! Host and runner as processes of their own.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Server, Site, wait_until};

fn token(site: &Site) -> String {
    site.json(&["node", "token", "create"])["token"].as_str().unwrap().to_owned()
}

fn online(site: &Site, name: &str) -> bool {
    site.json(&["node", "list"])
        .as_array()
        .unwrap()
        .iter()
        .any(|node| node["hostname"] == name && node["status"] == "online")
}

/// Sockets of a process that listen on TCP.
fn tcp_listeners(server: &Server) -> usize {
    let pid = server.pid();
    let mut listening = HashSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields[3] == "0A" {
                listening.insert(format!("socket:[{}]", fields[9]));
            }
        }
    }
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| listening.contains(&*link.to_string_lossy()))
        .count()
}

#[test]
fn a_machine_joins_with_a_token_serves_and_is_removed() {
    let mut site = Site::new();
    let host = site.host();
    let join = token(&site);
    let mut runner = site.runner("n1", &["--join", &join]);
    runner.wait_for_line("connected to the host");
    wait_until("it is online", Duration::from_secs(5), || online(&site, "n1"));
    assert_eq!(tcp_listeners(&runner), 0, "a runner listens on no TCP port");
    assert!(tcp_listeners(&host) >= 3, "the check itself sees listeners");

    site.runner("n2", &["--join", &join]).wait_for_line("already used by node 'n1'");
    let mut second = site.runner("n2", &["--join", &join]);
    assert_eq!(second.wait(), 5);

    let create = ["vps", "create", "-t", "n1", "--name", "web", "--ssh", "--image", BUSYBOX];
    site.kr(&create).ok();
    site.kr(&["ssh", "web", "--", "true"]).ok();
    site.kr(&["node", "remove", "n1", "--yes"]).fails(1, &["has VPSes", "--force"]);
    site.kr(&["vps", "delete", "web", "--yes", "--force"]).ok();
    site.kr(&["node", "remove", "n1", "--yes"]).ok();
    runner.wait_for_line("was removed from the cluster");
    assert_eq!(site.json(&["node", "list"]), serde_json::json!([]));
}

#[test]
fn a_host_that_restarts_finds_its_runners_and_ssh_again() {
    let mut site = Site::new();
    let host = site.host();
    let join = token(&site);
    let mut runner = site.runner("n1", &["--join", &join]);
    runner.wait_for_line("connected to the host");
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    host.kill();
    site.kr(&["vps", "list"]).fails(3, &["not reachable", "hint:"]);
    // Where the runner knows it, and where people do.
    let _host = site.host();
    wait_until("ssh works again", Duration::from_secs(10), || {
        site.kr(&["ssh", "web", "--", "true"]).code == 0
    });
}

#[test]
fn what_was_asked_while_the_runner_was_dead_is_done_when_it_is_back() {
    let mut site = Site::new();
    let _host = site.host();
    let join = token(&site);
    let mut runner = site.runner("n1", &["--join", &join]);
    runner.wait_for_line("connected to the host");
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    runner.kill();
    wait_until("it is offline", Duration::from_secs(5), || !online(&site, "n1"));
    site.kr(&["vps", "create", "--image", BUSYBOX]).fails(1, &["'n1' is offline"]);
    site.kr(&["vps", "stop", "web", "--no-wait"]).ok();
    assert_eq!(site.containers().len(), 1);
    let mut runner = site.runner("n1", &[]);
    runner.wait_for_line("connected to the host");
    wait_until("it is stopped", Duration::from_secs(10), || site.status("web") == "stopped");
    assert_eq!(site.containers().len(), 1, "a stop keeps the disk");
}

#[test]
fn a_machine_that_is_somebodys_node_is_not_taken_over_by_accident() {
    let mut site = Site::new();
    let _host = site.host();
    let mut runner = site.runner("n1", &["--join", &token(&site)]);
    runner.wait_for_line("connected to the host");
    let identity = site.runner_dir("n1").join("runner/identity.json");
    let before = fs::read(&identity).unwrap();
    let mut second = site.runner("n1", &["--join", &token(&site), "--rejoin"]);
    assert_eq!(second.wait(), 4);
    assert!(second.log().contains("another runner is using"), "{}", second.log());
    assert_eq!(fs::read(&identity).unwrap(), before);
    assert_eq!(site.json(&["node", "list"]).as_array().unwrap().len(), 1, "no phantom joined");
    runner.kill();
    // Also not by a cluster of its own on the same directory.
    let dir = site.runner_dir("n1");
    let mut up = site.command();
    up.args(["up", "--port", "0", "--ssh-port", "0", "--data-dir"]).arg(&dir);
    kohakuriver_e2e::run(&mut up).fails(4, &["node 'n1' of another cluster", "hint:"]);
    assert_eq!(fs::read(&identity).unwrap(), before);
    let mut again = site.runner("n1", &[]);
    again.wait_for_line("connected to the host");
}

#[test]
fn an_up_whose_runner_lost_its_membership_joins_under_its_old_name() {
    let mut site = Site::new();
    let server = site.up();
    site.kr(&["vps", "create", "--name", "web", "--ssh", "--image", BUSYBOX]).ok();
    assert_eq!(server.interrupt(), 0);
    fs::remove_file(site.data_dir().join("runner/identity.json")).unwrap();
    let _server = site.up();
    wait_until("it runs again", Duration::from_secs(5), || site.status("web") == "running");
    assert_eq!(site.json(&["node", "list"]).as_array().unwrap().len(), 1);
    site.kr(&["ssh", "web", "--", "true"]).ok();
}
