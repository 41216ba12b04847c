//! Three machines: a host and two nodes, each with a Docker engine of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Cluster, wait_until};

fn status(cluster: &Cluster, name: &str) -> String {
    let output = cluster.kr(&["vps", "status", name, "--json"]);
    let task: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    task["status"].as_str().unwrap_or_default().to_owned()
}

fn create(cluster: &Cluster, name: &str, node: &str) {
    let arguments = ["vps", "create", "--name", name, "-t", node, "--ssh", "--image", BUSYBOX];
    cluster.kr(&arguments).ok();
}

#[test]
fn nodes_fail_by_themselves_and_everything_comes_back_as_it_was() {
    let mut cluster = Cluster::start(3, false);
    placement_and_drain(&cluster);
    create(&cluster, "one", "n1");
    create(&cluster, "two", "n2");
    cluster.kr(&["ssh", "one", "--", "echo kept >/root/file"]).ok();
    a_pulled_cable(&cluster);
    a_restarted_engine(&mut cluster);
    a_long_absence(&mut cluster);
}

fn placement_and_drain(cluster: &Cluster) {
    let all = ["vps", "create", "--image", BUSYBOX, "-c", "64"];
    cluster.kr(&all).fails(1, &["node 'n1'", "node 'n2'", "would fit on"]);
    cluster.kr(&["node", "drain", "n1"]).ok();
    cluster.kr(&["node", "label", "n2", "disk=fast"]).ok();
    cluster.kr(&["vps", "create", "-t", "n1", "--image", BUSYBOX]).fails(1, &["drained"]);
    let made = cluster.json(&["vps", "create", "--name", "x", "--image", BUSYBOX]);
    assert_eq!(made["assigned_node"], "n2");
    cluster.kr(&["node", "undrain", "n1"]).ok();
    cluster.kr(&["node", "drain", "n2"]).ok();
    let labelled = ["vps", "create", "--image", BUSYBOX, "--node-label", "disk=fast"];
    cluster.kr(&labelled).fails(1, &["'n1' has no label disk=fast", "'n2' is drained"]);
    cluster.kr(&["node", "undrain", "n2"]).ok();
    cluster.kr(&["vps", "delete", "x", "--yes", "--force"]).ok();
    let nodes = cluster.json(&["node", "list"]);
    assert_eq!(nodes[1]["labels"]["disk"], "fast");
    wait_until("health is heard", Duration::from_secs(10), || {
        let health = cluster.json(&["node", "health", "n1"]);
        health["samples"].as_array().is_some_and(|samples| !samples.is_empty())
    });
}

/// A session goes on over a cable that is pulled for a while.
fn a_pulled_cable(cluster: &Cluster) {
    let mut command = cluster.command();
    let mut ssh = command
        .args(["ssh", "one", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = ssh.stdin.take().unwrap();
    let mut output = BufReader::new(ssh.stdout.take().unwrap());
    let mut echo = |text: &str| {
        writeln!(input, "{text}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), text);
    };
    echo("before");
    cluster.network.cut("n1");
    std::thread::sleep(Duration::from_secs(2));
    cluster.network.mend("n1");
    echo("after");
    drop(input);
    ssh.wait().unwrap();
    assert_eq!(
        (status(cluster, "one"), status(cluster, "two")),
        ("running".into(), "running".into())
    );
}

/// What an engine takes along comes back with it, on the same disk.
fn a_restarted_engine(cluster: &mut Cluster) {
    let containers = |cluster: &Cluster| cluster.engines[1].containers();
    let two = containers(cluster);
    cluster.restart_engine(0);
    wait_until("it runs again", Duration::from_secs(20), || {
        status(cluster, "one") == "running"
            && cluster.engines[0].containers().iter().all(|(_, state)| state == "running")
            && cluster.kr(&["ssh", "one", "--", "true"]).code == 0
    });
    assert_eq!(cluster.kr(&["ssh", "one", "--", "cat /root/file"]).ok(), "kept\n");
    assert_eq!(containers(cluster), two, "nobody touched the other node");
}

/// A node that is away for long is lost with its instances, which run on, and comes back by
/// itself; nothing is restarted.
fn a_long_absence(cluster: &mut Cluster) {
    let format = ["inspect", "--format", "{{.State.StartedAt}}"];
    let name = cluster.engines[0].containers()[0].0.clone();
    let started =
        |cluster: &Cluster| cluster.engines[0].docker(&[&format[..], &[&name]].concat()).ok();
    let before = started(cluster);
    cluster.kill_runner(0);
    wait_until("it is lost", Duration::from_secs(10), || status(cluster, "one") == "lost");
    wait_until("that is written down", Duration::from_secs(5), || {
        let events = cluster.json(&["vps", "events", "one"]);
        events.as_array().unwrap().iter().any(|event| event["kind"] == "lost")
    });
    assert_eq!(cluster.engines[0].containers()[0].1, "running", "it lives on");
    assert_eq!(status(cluster, "two"), "running");
    // Asked for while nobody can hear it.
    cluster.kr(&["vps", "pause", "two"]).ok();
    cluster.kill_host();
    cluster.start_host();
    cluster.start_runner(0, None);
    wait_until("it is back", Duration::from_secs(15), || status(cluster, "one") == "running");
    wait_until("the other too", Duration::from_secs(15), || status(cluster, "two") == "paused");
    assert_eq!(started(cluster), before, "nothing was restarted");
}
