//! Each mistake gets one clear line, what to do, a fixed exit code, and leaves nothing behind.

use std::fs;
use std::net::TcpListener;

use kohakuriver_e2e::{BUSYBOX, Output, Site, run};

#[test]
fn mistakes_of_create_are_told_and_leave_nothing() {
    let mut site = Site::new();
    let _server = site.up();
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&["-t", "nowhere"], 1, &["no node named 'nowhere'", "node list"]),
        (&["-t", "a:b:c"], 2, &["is not a target", "node:numa"]),
        (&["-m", "8X"], 2, &["'8X' is not a size", "8G"]),
        (&["-c", "4096"], 1, &["4096 cores are more than node", "hint:"]),
        (&["-m", "900T"], 1, &["more than node", "hint:"]),
        (
            &["--image", "no.such.registry.invalid/x"],
            1,
            &["allows no images of the registry", "hint:"],
        ),
        (&["--ssh", "--public-key-file", "/nowhere.pub"], 2, &["/nowhere.pub cannot be read"]),
        (&["--image", "a", "--container", "b"], 2, &["cannot be used with"]),
        (&["--name", "Not_A_Name"], 2, &["is not a name"]),
    ];
    for (arguments, code, parts) in cases {
        let output: Output = site.kr(&[&["vps", "create"], arguments].concat());
        output.fails(code, parts);
    }
    assert_eq!(site.json(&["vps", "list", "--all"]), serde_json::json!([]));
    assert_eq!(site.containers(), [] as [String; 0]);
    let node = &site.json(&["node", "list"])[0];
    assert_eq!(node["cores_in_use"], 0, "nothing is held");
    let keys = fs::read_dir(site.home().join(".ssh")).map(Iterator::count).unwrap_or(0);
    assert_eq!(keys, 0, "no key of a VPS that is not there");
}

#[test]
fn a_second_up_and_taken_ports_are_refused_before_anything_is_made() {
    let mut site = Site::new();
    let _server = site.up();
    let up = |site: &Site, arguments: &[&str]| run(site.command().arg("up").args(arguments));
    let data = site.data_dir();
    let data = data.to_str().unwrap();
    up(&site, &["--data-dir", data]).fails(4, &["another kohakuriver is running", "hint:"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let other = site.path().join("other");
    let other = other.to_str().unwrap();
    let api = up(&site, &["--data-dir", other, "--port", &port, "--ssh-port", "0"]);
    api.fails(4, &[&format!("port {port}"), "taken", "--port PORT"]);
    let ssh = up(&site, &["--data-dir", other, "--port", "0", "--ssh-port", &port]);
    ssh.fails(4, &[&format!("port {port}"), "taken", "--ssh-port PORT"]);
    assert!(!site.path().join("other/host/host.db").exists());
}

#[test]
fn without_a_docker_engine_it_starts_and_says_what_is_missing() {
    let mut site = Site::new();
    let server = site.up_with(&["--docker-socket", "/nowhere/docker.sock"]);
    assert!(server.log().contains("docker   none"), "{}", server.log());
    let refused = site.kr(&["vps", "create", "--image", BUSYBOX]);
    refused.fails(1, &["no working Docker engine", "hint:"]);
    assert_eq!(site.json(&["vps", "list", "--all"]), serde_json::json!([]));
}

#[test]
fn a_runner_without_a_cluster_says_how_to_join() {
    let site = Site::new();
    let mut alone = site.runner("n1", &[]);
    assert_eq!(alone.wait(), 2);
    assert!(alone.log().contains("node token create"), "{}", alone.log());
    let nonsense = run(site.command().args(["runner", "--join", "hello"]));
    nonsense.fails(2, &["not a join token"]);
    let mut far =
        site.runner("n1", &["--join", "krj1.eyJhIjoiMTI3LjAuMC4xOjEiLCJmIjoiYWIiLCJzIjoieCJ9"]);
    assert_eq!(far.wait(), 5);
    assert!(far.log().contains("cannot reach the host at 127.0.0.1:1"), "{}", far.log());
}

#[test]
fn json_is_the_only_thing_on_standard_output() {
    let mut site = Site::new();
    let _server = site.up();
    for arguments in [&["vps", "list"][..], &["node", "list"], &["status"], &["config", "show"]] {
        site.json(arguments);
    }
    let created = site.json(&["vps", "create", "--ssh", "--image", BUSYBOX]);
    let id = created["task_id"].as_str().unwrap();
    for act in ["stop", "restart"] {
        assert_eq!(site.json(&["vps", act, id])["task_id"], id);
    }
    site.json(&["vps", "delete", id, "--yes", "--force"]);
    let missing = site.kr(&["vps", "status", "nobody", "--json"]);
    assert_eq!((missing.code, missing.stdout.as_str()), (1, ""));
}
