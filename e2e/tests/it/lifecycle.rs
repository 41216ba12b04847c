//! Every arrow of the page's diagram on real Docker, and deaths nobody asked for.

use std::process::Command;
use std::time::Duration;

use kohakuriver_e2e::{BUSYBOX, Site, run, wait_until};

fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments)).ok()
}

fn container(site: &Site, name: &str) -> String {
    let task = site.json(&["vps", "status", name]);
    format!("kohakuriver-vps-{}", task["task_id"].as_str().unwrap())
}

fn state(container: &str) -> String {
    docker(&["inspect", "--format", "{{.State.Status}}", container]).trim().to_owned()
}

fn create(site: &Site, name: &str, more: &[&str]) {
    let arguments = ["vps", "create", "--name", name, "--ssh", "--image", BUSYBOX];
    site.kr(&[&arguments[..], more].concat()).ok();
}

#[track_caller]
fn becomes(site: &Site, name: &str, status: &str) {
    wait_until(status, Duration::from_secs(10), || site.status(name) == status);
}

#[test]
fn every_arrow_of_the_diagram_works_and_the_container_is_what_is_said() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", &["-c", "1"]);
    let name = container(&site, "web");
    site.kr(&["ssh", "web", "--", "echo kept >/root/file"]).ok();
    // Twice: repeating is harmless.
    for _ in 0..2 {
        site.kr(&["vps", "pause", "web"]).ok();
    }
    assert_eq!((site.status("web").as_str(), state(&name).as_str()), ("paused", "paused"));
    assert_eq!(site.json(&["node", "list"])[0]["cores_in_use"], 1, "paused keeps what it holds");
    site.kr(&["ssh", "web", "--", "true"]).fails(1, &["paused", "resume"]);
    for _ in 0..2 {
        site.kr(&["vps", "resume", "web"]).ok();
    }
    assert_eq!(state(&name), "running");

    site.kr(&["vps", "pause", "web"]).ok();
    site.kr(&["vps", "stop", "web"]).ok();
    assert_eq!((site.status("web").as_str(), state(&name).as_str()), ("stopped", "exited"));
    assert_eq!(site.json(&["node", "list"])[0]["cores_in_use"], 0);
    site.kr(&["vps", "pause", "web"]).fails(1, &["is stopped", "restart"]);
    site.kr(&["vps", "resume", "web"]).fails(1, &["is stopped", "possible now"]);
    site.kr(&["vps", "restart", "web"]).ok();
    site.kr(&["vps", "kill", "web"]).ok();
    assert_eq!((site.status("web").as_str(), state(&name).as_str()), ("killed", "exited"));
    site.kr(&["vps", "restart", "web"]).ok();
    site.kr(&["vps", "pause", "web"]).ok();
    site.kr(&["vps", "restart", "web"]).ok();
    assert_eq!(site.kr(&["ssh", "web", "--", "cat /root/file"]).ok(), "kept\n");
    assert_eq!(container(&site, "web"), name, "it is the same one all the time");

    let events = site.json(&["vps", "events", "web"]);
    let kinds: Vec<_> =
        events.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let expected = [
        "create", "running", "pause", "paused", "resume", "running", "pause", "paused", "stop",
        "stopped", "restart", "running", "kill", "stopped", "restart", "running", "pause",
        "paused", "restart", "running",
    ];
    assert_eq!(kinds, expected);
    let actor = events[0]["actor"].as_str().unwrap();
    assert!(actor.contains('@'), "who asked: {actor}");
}

#[test]
fn a_process_that_eats_its_memory_ends_in_killed_oom_or_dies_alone_as_wished() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", &["-m", "64M"]);
    create(&site, "tough", &["-m", "64M", "--on-oom", "keep"]);
    const EAT: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let _ = site.kr(&["ssh", "web", "--", EAT]);
    becomes(&site, "web", "killed_oom");
    let task = site.json(&["vps", "status", "web"]);
    assert!(task["error_message"].as_str().unwrap().contains("64M"), "{task}");
    site.kr(&["vps", "stop", "web"]).fails(1, &["is killed_oom", "restart"]);
    site.kr(&["vps", "update", "web", "-m", "512M"]).ok();
    site.kr(&["vps", "restart", "web"]).ok();
    site.kr(&["ssh", "web", "--", EAT]).ok();

    let _ = site.kr(&["ssh", "tough", "--", EAT]);
    assert_eq!(site.kr(&["ssh", "tough", "--", "echo alive"]).ok(), "alive\n");
    assert_eq!(site.status("tough"), "running");
}

#[test]
fn unexpected_ends_are_reported_with_how_to_go_on() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", &[]);
    let name = container(&site, "web");
    docker(&["kill", "--signal", "KILL", &name]);
    becomes(&site, "web", "failed");
    let task = site.json(&["vps", "status", "web"]);
    assert!(task["error_message"].as_str().unwrap().contains("exit code 137"), "{task}");
    assert_eq!(site.json(&["node", "list"])[0]["vps_without_core_limit"], 0, "given back");
    site.kr(&["vps", "restart", "web"]).ok();
    docker(&["pause", &name]);
    // Somebody's hand from outside: what was wished wins.
    wait_until("it goes on", Duration::from_secs(5), || state(&name) == "running");
    docker(&["rm", "--force", &name]);
    becomes(&site, "web", "failed");
    let task = site.json(&["vps", "status", "web"]);
    // Seen between its death and its removal, it has ended; a moment later it is not there at all.
    assert!(matches!(task["error_code"].as_str(), Some("disappeared" | "ended")), "{task}");
    site.kr(&["vps", "restart", "web"]).fails(1, &["its disk is gone", "hint:"]);
    site.kr(&["vps", "delete", "web", "--yes"]).ok();
}

#[test]
fn limits_change_while_it_runs_and_nothing_is_restarted() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", &["-m", "128M"]);
    let name = container(&site, "web");
    let limits = || {
        docker(&["inspect", "--format", "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}", &name])
    };
    let started = || docker(&["inspect", "--format", "{{.State.StartedAt}}", &name]);
    let before = started();
    site.kr(&["vps", "update", "web", "-c", "1", "-m", "256M"]).ok();
    assert_eq!(limits().trim(), format!("1000000000 {}", 256 << 20));
    assert_eq!(site.json(&["node", "list"])[0]["cores_in_use"], 1);
    site.kr(&["vps", "update", "web", "-c", "0", "-m", "none"]).ok();
    assert_eq!(site.json(&["node", "list"])[0]["vps_without_core_limit"], 1);
    let cores = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(limits().starts_with(&(cores * 1_000_000_000).to_string()), "{}", limits());
    site.kr(&["vps", "update", "web", "-c", "4096"]).fails(1, &["more than node", "hint:"]);
    site.kr(&["vps", "update", "web"]).fails(2, &[]);
    assert_eq!(started(), before, "it was not restarted");
}

#[test]
fn a_numa_target_really_pins() {
    let mut site = Site::new();
    let _server = site.up();
    let node = site.json(&["node", "list"])[0]["hostname"].as_str().unwrap().to_owned();
    let refused = ["vps", "create", "-t", &format!("{node}:7"), "--image", BUSYBOX];
    site.kr(&refused).fails(1, &["no NUMA node 7"]);
    create(&site, "web", &["-t", &format!("{node}:0")]);
    let name = container(&site, "web");
    let format = "{{.HostConfig.CpusetCpus}} {{.HostConfig.CpusetMems}}";
    let pinned = docker(&["inspect", "--format", format, &name]);
    let kernel = std::fs::read_to_string("/sys/devices/system/node/node0/cpulist").unwrap();
    assert_eq!(pinned.trim(), format!("{} 0", kernel.trim()));
    let inside = site.kr(&["ssh", "web", "--", "grep Cpus_allowed_list /proc/self/status"]).ok();
    assert!(inside.trim().ends_with(kernel.trim()), "{inside}");
    // No GPU here, and the answer says so.
    site.kr(&["vps", "create", "-t", &format!("{node}::0"), "--image", BUSYBOX])
        .fails(1, &["no GPU 0"]);
    site.kr(&["vps", "create", "--gpus", "1", "--image", BUSYBOX]).fails(1, &["0 of 0 GPUs"]);
}

#[test]
fn snapshots_save_restore_clone_and_go_with_their_vps() {
    let mut site = Site::new();
    let _server = site.up();
    create(&site, "web", &["--keep-snapshots", "2", "--snapshot-on-stop"]);
    let id = site.json(&["vps", "status", "web"])["task_id"].as_str().unwrap().to_owned();
    let key = site.json(&["vps", "status", "web"])["ssh_host_key"].clone();
    let write =
        |text: &str| site.kr(&["ssh", "web", "--", &format!("echo {text} >/root/file")]).ok();
    let read = |name: &str| site.kr(&["ssh", name, "--", "cat /root/file"]).ok();
    write("one");
    let message = "before the upgrade";
    site.kr(&["vps", "snapshot", "create", "web", "--name", "good", "-m", message]).ok();
    write("two");
    let list = site.json(&["vps", "snapshot", "list", "web"]);
    assert_eq!((&list["count"], &list["snapshots"][0]["message"]), (&1.into(), &message.into()));
    assert!(list["snapshots"][0]["size"].as_u64().unwrap() > 100_000, "{list}");

    site.kr(&["vps", "create", "--name", "copy", "--ssh", "--from-snapshot", "web@good"]).ok();
    assert_eq!(read("copy"), "one\n");
    site.kr(&["vps", "snapshot", "restore", "web", "good", "--yes"]).ok();
    assert_eq!(read("web"), "one\n");
    assert_eq!(site.json(&["vps", "status", "web"])["ssh_host_key"], key, "the same host key");
    site.kr(&["vps", "snapshot", "delete", "web", "good", "--yes"]).fails(1, &["in use"]);
    site.kr(&["vps", "restart", "web", "--from-snapshot", "nope", "--yes"])
        .fails(1, &["no snapshot nope", "snapshot list"]);

    write("three");
    site.kr(&["vps", "stop", "web"]).ok();
    let list = site.json(&["vps", "snapshot", "list", "web"]);
    assert_eq!((&list["count"], &list["snapshots"][0]["name"]), (&2.into(), &().into()));
    site.kr(&["vps", "snapshot", "create", "web"]).ok();
    let list = site.json(&["vps", "snapshot", "list", "web"]);
    let kept: Vec<_> = list["snapshots"].as_array().unwrap().iter().collect();
    assert!(kept.iter().any(|kept| kept["name"] == "good"), "the one in use stays: {list}");
    site.kr(&["vps", "restart", "web", "--from-snapshot", "--yes"]).ok();
    assert_eq!(read("web"), "three\n");

    site.kr(&["vps", "delete", "web", "--yes", "--force"]).ok();
    let reference = format!("reference=kohakuriver-snapshot/vps-{id}");
    assert_eq!(docker(&["images", "--quiet", "--filter", &reference]), "", "no snapshot is left");
    site.kr(&["vps", "restart", "copy"]).ok();
    assert_eq!(read("copy"), "one\n", "a copy outlives what it came from");
}
