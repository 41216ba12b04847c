//! `kohakuriver vps snapshot`, and restarting on a snapshot's disk.

use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, task};
use crate::{ID, stdout_json};

fn snapshot(tag: &str, name: Option<&str>, used: bool) -> Value {
    json!({
        "tag": tag, "task_id": 7, "timestamp": tag.parse::<u64>().unwrap(), "size": 3_u64 << 30,
        "created_at": "2026-01-01T00:00:00Z", "name": name, "message": "before the upgrade",
        "own_size": 1_u64 << 29, "in_use": used,
    })
}

/// A host of one VPS with two snapshots.
fn host() -> Host {
    Host::start(|request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", path) if path.starts_with("/api/vps/snapshots/") => Answer::ok(json!({
            "task_id": 7, "count": 2,
            "snapshots": [snapshot("1750003600", None, true), snapshot("1750000000", Some("clean"), false)],
        })),
        ("GET", _) => Answer::ok(task(ID, "web", "running", 2)),
        ("DELETE", _) => Answer::ok(json!({"message": "one is used", "deleted_count": 1})),
        ("POST", path) if path == format!("/api/vps/snapshots/{ID}") => Answer::ok(json!({
            "message": "made", "tag": "1750007200", "snapshot": snapshot("1750007200", None, false),
        })),
        _ => Answer::accepted(ID),
    })
}

#[test]
fn a_list_shows_what_each_snapshot_costs() {
    let host = host();
    let ran = Sandbox::new().run(&host, &["vps", "snapshot", "ls", "web"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("TAG "), "{lines:?}");
    let words: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!(words[..2], ["1750000000", "clean"]);
    assert!(lines[2].contains("512M") && lines[2].contains("3G"), "{lines:?}");
    assert!(lines[1].contains(" yes ") && lines[2].contains(" no "), "{lines:?}");
    let ran = Sandbox::new().run(&host, &["vps", "snapshot", "list", "web", "--json"]);
    assert_eq!(stdout_json(&ran)["snapshots"][1]["name"], "clean");
}

#[test]
fn snapshot_create_sends_name_and_message() {
    let host = host();
    let args = ["vps", "snapshot", "create", "web", "--name", "clean", "-m", "a & b"];
    let ran = Sandbox::new().run(&host, &args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, "snapshot 1750007200 (clean) of VPS web is created: 512M\n");
    assert!(ran.stderr.contains("creating a snapshot of web"), "{}", ran.stderr);
    let sent = host.find_all(&format!("POST /api/vps/snapshots/{ID}?")).remove(0).target;
    assert!(sent.contains("name=clean") && sent.contains("message=a+%26+b"), "{sent}");

    let broken = Host::start(|request| match request.method.as_str() {
        "GET" => Answer::ok(task(ID, "web", "running", 2)),
        _ => Answer::nothing(),
    });
    let ran = Sandbox::new().run(&broken, &["vps", "snapshot", "create", "web"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("kohakuriver vps snapshot list web"), "{}", ran.stderr);
}

#[test]
fn snapshot_names_are_resolved_before_any_delete() {
    let host = host();
    let sandbox = Sandbox::new();
    let args =
        ["vps", "snapshot", "delete", "web", "latest", "1750003600", "clean", "absent", "-y"];
    let ran = sandbox.run(&host, &args);
    assert_eq!(ran.code, 1);
    let deleted: Vec<_> = host.find_all("DELETE").into_iter().map(|r| r.path).collect();
    let path = |tag: &str| format!("/api/vps/snapshots/{ID}/{tag}");
    assert_eq!(deleted, [path("1750003600"), path("1750000000")]);
    assert!(ran.stderr.contains("has no snapshot absent"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: `kohakuriver vps snapshot list web`"), "{}", ran.stderr);

    let ran = sandbox.run(&host, &["vps", "snapshot", "delete", "web", "--all", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1 of 2 snapshots of VPS web deleted\n"));
    assert!(ran.stderr.contains("note: one is used"), "{}", ran.stderr);
    assert!(host.saw(&format!("DELETE /api/vps/snapshots/{ID}")));
}

#[test]
fn operations_that_lose_a_disk_ask_for_confirmation() {
    let host = host();
    for args in [
        &["vps", "snapshot", "restore", "web"][..],
        &["vps", "snapshot", "delete", "web", "clean"],
        &["vps", "snapshot", "delete", "web", "--all"],
        &["vps", "restart", "web", "--from-snapshot"],
    ] {
        let ran = Sandbox::new().run(&host, args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("--yes"), "{args:?}: {}", ran.stderr);
    }
    assert!(!host.saw("POST") && !host.saw("DELETE"));
}

#[test]
fn restore_sends_snapshot_tag_and_waits() {
    let sandbox = Sandbox::new();
    let path = format!("POST /api/vps/snapshots/{ID}");
    for (word, tag) in [(None, "1750003600"), (Some("clean"), "1750000000")] {
        let host = host();
        let mut args = vec!["vps", "snapshot", "restore", "web"];
        args.extend(word);
        let ran = sandbox.run(&host, &[&args[..], &["--yes"]].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "VPS web is running\n"), "{}", ran.stderr);
        assert!(host.saw(&format!("{path}/{tag}/restore")), "{word:?}");
    }
    let host = host();
    let args = ["vps", "restart", "web", "--from-snapshot", "clean", "--yes", "--json"];
    let ran = sandbox.run(&host, &args);
    assert_eq!(stdout_json(&ran)["status"], "running", "{}", ran.stderr);
    assert!(host.saw(&format!("POST /api/vps/restart/{ID}?from_snapshot=1750000000")));
}
