//! Standard output that accepts nothing: a full disk, and a reader that has gone.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, pipe};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::ID;
use crate::support::{Answer, Host, Ran, Request, Sandbox, task};

/// The commands of these tests, each of which prints text.
const COMMANDS: &[&[&str]] = &[
    &["--help"],
    &["--version"],
    &["vps", "create", "--help"],
    &["completion", "bash"],
    &["config", "show"],
    &["config", "show", "--json"],
    &["config", "path"],
    &["version"],
    &["version", "--json"],
    &["status"],
    &["status", "--json"],
    &["doctor"],
    &["doctor", "--json"],
    &["vps", "list"],
    &["vps", "list", "--json"],
    &["vps", "status", "web"],
    &["vps", "status", "web", "--watch"],
    &["vps", "status", "web", "--watch", "--json"],
    &["vps", "events", "web"],
    &["vps", "events", "web", "--json"],
    &["vps", "events", "web", "--follow"],
    &["vps", "keys", "list", "web"],
    &["vps", "snapshot", "list", "web"],
    &["vps", "resume", "web"],
    &["vps", "resume", "web", "db", "--json"],
    &["vps", "update", "web", "-c", "2"],
    &["vps", "create", "--detach"],
    &["vps", "create", "--detach", "--json"],
    &["ssh", "config"],
    &["ssh", "config", "--json"],
    &["approval", "list", "--json"],
    &["audit", "list"],
    &["audit", "list", "--json"],
    &["audit", "list", "--follow"],
    &["audit", "export"],
    &["audit", "verify"],
    &["node", "list"],
    &["node", "list", "--json"],
    &["node", "status", "node1"],
    &["node", "health", "node1"],
    &["node", "token", "create"],
    &["node", "token", "create", "--json"],
    &["auth", "token", "create", "ci"],
    &["auth", "whoami"],
    &["auth", "users"],
    &["auth", "users", "--json"],
    &["qemu", "instances"],
];

fn answer(request: &Request) -> Answer {
    let vps = || task(ID, "web", "running", 1);
    let node = || json!({"hostname": "node1", "status": "online", "total_cores": 8});
    let user = || json!({"id": 1, "username": "ann", "role": "admin", "is_active": true});
    let entry = || {
        json!({
            "seq": 1, "at": "2026-01-01T00:00:00Z", "actor": "ann", "address": "::1",
            "action": "vps.stop", "object": "web", "result": "ok", "detail": "", "hash": "00",
        })
    };
    let stopped = request.method != "GET";
    match request.path.as_str() {
        "/api/health" => Answer::ok(json!({
            "status": "ok", "version": "0.1.0", "nodes_online": 1, "nodes_total": 1, "vps_running": 1,
        })),
        "/api/vps/status" | "/api/vps" => Answer::ok(json!([vps()])),
        "/api/nodes" => Answer::ok(json!([node()])),
        "/api/nodes/node1" => Answer::ok(node()),
        "/api/nodes/node1/health" => Answer::ok(json!({
            "hostname": "node1", "status": "online", "samples": [],
        })),
        "/api/nodes/tokens" => Answer::ok(json!({
            "token": "kr1.abc", "expires_at": "2030-01-01T00:00:00Z", "address": "h:8001",
        })),
        "/api/tasks/pending-approval" => Answer::ok(json!([vps()])),
        "/api/audit" => Answer::ok(json!([entry()])),
        "/api/audit/export" => Answer::ok(entry()),
        "/api/audit/verify" => Answer::ok(json!({"intact": true, "entries": 1, "last_hash": "0"})),
        "/api/auth/status" => Answer::ok(json!({"auth_enabled": true, "needs_setup": false})),
        "/api/auth/me" => Answer::ok(user()),
        "/api/auth/users" => Answer::ok(json!([user()])),
        "/api/auth/tokens/create" => Answer::ok(json!({
            "token": "kohakuriver_abc", "id": 1, "name": "ci", "role": "admin",
            "created_at": "2026-01-01T00:00:00Z", "expires_at": null,
        })),
        "/api/vps/vm-instances" => Answer::ok(json!({"nodes": []})),
        "/api/vps/create" => Answer::ok(json!({
            "message": "ok", "task_id": ID, "vps_backend": "docker", "ssh_key_mode": "disabled",
            "ssh_port": 0, "assigned_node": {"hostname": "node1", "url": null},
            "status": "assigning", "task": task(ID, "web", "assigning", 1),
        })),
        path if path.ends_with("/events") => Answer::ok(json!([{
            "id": 1, "task_id": ID, "at": "2026-01-01T00:00:00Z", "kind": "running",
            "actor": "node node1", "detail": "",
        }])),
        path if path.ends_with("/keys") => Answer::ok(json!([{
            "fingerprint": "SHA256:x", "algorithm": "ssh-ed25519", "comment": "", "public_key": "",
        }])),
        path if path.contains("/snapshots/") => {
            Answer::ok(json!({"snapshots": [{"tag": "1750000000"}], "count": 1}))
        }
        _ if stopped => Answer::accepted(ID),
        _ => Answer::ok(vps()),
    }
}

#[test]
fn output_to_full_disk_fails_every_command() {
    let host = Host::start(answer);
    let mut wrong = Vec::new();
    for args in COMMANDS {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let command = Sandbox::new()
            .command(host.port, args)
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ran = end(command, args);
        let said = ran.stderr.contains("error: standard output was not written");
        if ran.code != 1 || !said {
            wrong.push((args, ran));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn output_to_closed_pipe_ends_every_command_quietly() {
    let host = Host::start(answer);
    let mut wrong = Vec::new();
    for args in COMMANDS {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let command = Sandbox::new()
            .command(host.port, args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ran = end(command, args);
        if ran.code != 141 || ran.stderr.contains("error") {
            wrong.push((args, ran));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn closed_pipe_ends_idle_watch() {
    let host = Host::start(answer);
    for args in [
        &["vps", "status", "web", "--watch"][..],
        &["vps", "events", "web", "--follow"],
        &["audit", "list", "--follow"],
    ] {
        let sandbox = Sandbox::new();
        let mut command = sandbox.command(host.port, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(!first.is_empty(), "{args:?}");
        assert_eq!(end(child, args).code, 141, "{args:?}");
    }
}

/// Waits for the process's end, which takes a moment; after a minute it counts as hung.
fn end(mut child: Child, args: &[&str]) -> Ran {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{args:?} goes on: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap().into()
}
