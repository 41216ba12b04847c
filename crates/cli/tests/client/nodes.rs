//! `kohakuriver node`

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, task};
use crate::{ID, stdout_json};

fn node() -> Value {
    json!({
        "hostname": "node1", "status": "online", "total_cores": 8, "cores_in_use": 3,
        "vps_count": 2, "drained": true, "labels": {"disk": "ssd", "room": "b2"},
        "vps_without_core_limit": 2, "load_1m": 0.5, "runner_version": "0.1.0",
        "docker_version": "27.1", "gpu_runtime": true,
        "gpu_info": [
            {"gpu_id": 0, "name": "H100", "uuid": "GPU-a", "taken": true},
            {"gpu_id": 1, "name": "H100", "uuid": "GPU-b"},
        ],
    })
}

#[test]
fn node_list_and_status_show_free_capacity() {
    let host = Host::start(|request| match request.path.as_str() {
        "/api/nodes" => Answer::ok(json!([node()])),
        _ => Answer::ok(node()),
    });
    let sandbox = Sandbox::new();
    let list = sandbox.run(&host, &["node", "list"]).stdout;
    for part in ["online, drained", "3/8 +2 unlimited", "1/2", "27.1", "0.1.0", "disk=ssd room=b2"]
    {
        assert!(list.contains(part), "{part}: {list}");
    }
    let shown = sandbox.run(&host, &["node", "status", "node1"]).stdout;
    for part in ["online, drained", "disk=ssd room=b2", "2 VPSes without a limit", "GPU-b", "taken"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("gpu runtime"), "{shown}");
}

#[test]
fn drain_reports_remaining_vpses_and_can_wait_for_them() {
    let looks = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.path.as_str() {
        "/api/vps/status" => {
            let mut other = task("8", "db", "running", 1);
            other["assigned_node"] = json!("node2");
            let mut all = vec![other];
            if looks.fetch_add(1, Ordering::SeqCst) == 0 {
                all.push(task(ID, "web", "paused", 1));
            }
            Answer::ok(all.into())
        }
        _ => Answer::ok(node()),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["node", "drain", "node1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "2 VPSes stay on it\n"));
    assert!(host.saw("POST /api/nodes/node1/drain") && !host.saw("GET /api/vps/status"));
    let ran = sandbox.run(&host, &["node", "drain", "node1", "--wait"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("waiting until these VPSes are stopped: web\n"), "{}", ran.stderr);
    assert!(ran.stdout.ends_with("no VPS is up on node node1\n"), "{}", ran.stdout);
    let ran = sandbox.run(&host, &["node", "undrain", "node1", "--json"]);
    assert_eq!(stdout_json(&ran)["hostname"], "node1");
    assert!(host.saw("POST /api/nodes/node1/undrain"));
}

#[test]
fn labels_are_set_and_removed_in_one_go() {
    let host = Host::start(|_| Answer::ok(node()));
    let ran = Sandbox::new().run(&host, &["node", "label", "node1", "disk=ssd", "old-"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "node node1: disk=ssd room=b2\n"));
    let sent = host.body("PATCH /api/nodes/node1/labels");
    assert_eq!(sent, json!({"labels": {"disk": "ssd", "old": null}}));
}

#[test]
fn health_is_an_hour_at_a_glance() {
    let host = Host::start(|request| match request.path.as_str() {
        "/api/nodes/node1/health" => Answer::ok(json!({
            "hostname": "node1", "status": "online",
            "samples": [
                {"at_ms": 0, "cpu_percent": 100.0, "memory_used_bytes": 0,
                 "memory_total_bytes": 4_u64 << 30, "load_1m": 9.0},
                {"at_ms": 1_200_000, "cpu_percent": 12.0, "memory_used_bytes": 1_u64 << 30,
                 "memory_total_bytes": 4_u64 << 30, "load_1m": 0.5},
            ],
        })),
        "/api/nodes/new/health" => Answer::ok(json!({"hostname": "new", "status": "offline"})),
        _ => Answer::not_found(),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["node", "health", "node1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("█···▁  12 % now, at most 100 %"), "{}", ran.stdout);
    assert!(ran.stdout.contains("▁···▃  1G/4G now, at most 1G"), "{}", ran.stdout);
    let ran = sandbox.run(&host, &["node", "health", "new"]);
    assert!(ran.stderr.contains("no data from node"), "{}", ran.stderr);
    let ran = sandbox.run(&host, &["node", "health", "absent"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("hint: `kohakuriver node list`"), "{}", ran.stderr);
}

#[test]
fn what_a_removed_node_keeps_is_named() {
    let host = Host::start(|request| match request.method.as_str() {
        "DELETE" => Answer::ok(
            json!({"message": "ok", "left_behind": ["kr-7", "kr-8"], "left_machines": ["9"]}),
        ),
        _ => Answer::ok(node()),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["node", "remove", "node1", "--force", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "node node1 is removed\n"));
    assert!(ran.stderr.contains("docker rm -f") && ran.stderr.contains("kr-7 kr-8"));
    assert!(ran.stderr.contains("computer: 9\n") && ran.stderr.contains("qemu cleanup"));
}
