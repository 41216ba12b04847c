//! Operations on VPSes: stop, kill, pause, resume, restart, update, delete.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::support::{Answer, Host, Sandbox, task};
use crate::{ID, stdout_json};

#[test]
fn stop_acts_on_all_and_reports_each_failure() {
    let asked = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.path.as_str() {
        "/api/status/absent" => Answer::not_found(),
        "/api/status/web" => Answer::ok(task(ID, "web", "running", 1)),
        path if path == format!("/api/vps/stop/{ID}") => {
            Answer::ok(json!({"message": "stopping", "task_id": ID}))
        }
        _ => {
            let mut state = task(ID, "web", "running", 2);
            state["transition"] = json!("stopping");
            if asked.fetch_add(1, Ordering::SeqCst) > 0 {
                state = task(ID, "web", "stopped", 3);
            }
            Answer::ok(state)
        }
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "stop", "absent", "web"]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stdout, "VPS web is stopped\n");
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("stopping web"));
    let ran = sandbox.run(&host, &["vps", "stop", "web", "--json"]);
    assert_eq!((ran.code, stdout_json(&ran)["status"].clone()), (0, json!("stopped")));
}

#[test]
fn restart_of_what_fails_says_why() {
    let host = Host::start(move |request| match request.method.as_str() {
        "POST" => Answer::ok(json!({"message": "restarting", "task_id": ID})),
        _ => {
            let mut state = task(ID, "web", "failed", 2);
            state["error_message"] = json!("the disk is gone");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "restart", "web"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("the disk is gone"), "{}", ran.stderr);
}

#[test]
fn delete_waits_until_it_is_gone() {
    let asked = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.method.as_str() {
        "DELETE" => Answer::ok(json!({"message": "deleting", "task_id": ID})),
        _ if asked.fetch_add(1, Ordering::SeqCst) > 1 => Answer::not_found(),
        _ => {
            let mut state = task(ID, "web", "stopped", 2);
            state["transition"] = json!("deleting");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "delete", "web", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "VPS web is deleted\n"), "{}", ran.stderr);
    assert!(host.saw(&format!("DELETE /api/vps/{ID}?force=false")));
}

/// A host where an operation is in progress at the first poll and done at the second.
fn acting(transition: &'static str, before: &'static str, after: &'static str) -> Host {
    let asked = AtomicUsize::new(0);
    Host::start(move |request| match (request.method.as_str(), request.target.contains("since")) {
        ("POST" | "PATCH", _) => Answer::accepted(ID),
        _ if request.path == "/api/status/web" => Answer::ok(task(ID, "web", before, 1)),
        _ if asked.fetch_add(1, Ordering::SeqCst) > 0 => Answer::ok(task(ID, "web", after, 3)),
        _ => {
            let mut state = task(ID, "web", before, 2);
            state["transition"] = json!(transition);
            Answer::ok(state)
        }
    })
}

#[test]
fn kill_pause_and_resume_wait_for_their_own_status() {
    for (act, path, transition, before, after) in [
        ("kill", format!("/api/kill/{ID}"), "killing", "running", "killed"),
        ("pause", format!("/api/vps/pause/{ID}"), "pausing", "running", "paused"),
        ("resume", format!("/api/vps/resume/{ID}"), "resuming", "paused", "running"),
    ] {
        let sandbox = Sandbox::new();
        let host = acting(transition, before, after);
        let ran = sandbox.run(&host, &["vps", act, "web"]);
        assert_eq!(ran.code, 0, "{act}: {}", ran.stderr);
        assert_eq!(ran.stdout, format!("VPS web is {after}\n"));
        assert_eq!(ran.stderr, format!("{transition} web\n"));
        assert!(host.saw(&format!("POST {path}")), "{act}");

        let host = acting(transition, before, after);
        let ran = sandbox.run(&host, &["vps", act, "web", "--json"]);
        assert_eq!(stdout_json(&ran)["status"], after);

        let host = acting(transition, before, after);
        let ran = sandbox.run(&host, &["vps", act, "web", "--no-wait"]);
        assert_eq!(ran.code, 0, "{act}: {}", ran.stderr);
        assert_eq!(host.find_all("GET").len(), 1, "{act}");
    }
}

#[test]
fn pause_with_another_final_status_fails() {
    let host = acting("pausing", "running", "killed_oom");
    let ran = Sandbox::new().run(&host, &["vps", "pause", "web"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("is killed_oom, not paused"), "{}", ran.stderr);
}

#[test]
fn an_update_sends_only_what_changes() {
    let sandbox = Sandbox::new();
    let sent = |args: &[&str]| {
        let host = acting("updating", "running", "running");
        let ran = sandbox.run(&host, &[&["vps", "update", "web"], args].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "VPS web is updated\n"), "{}", ran.stderr);
        host.body(&format!("PATCH /api/vps/{ID}"))
    };
    assert_eq!(
        sent(&["-c", "2", "-m", "none"]),
        json!({"required_cores": 2, "required_memory_bytes": 0})
    );
    assert_eq!(
        sent(&["--snapshot-on-stop", "off", "--keep-snapshots", "3", "--on-oom", "keep"]),
        json!({"snapshot_on_stop": false, "keep_snapshots": 3, "on_oom": "keep"})
    );
    assert_eq!(
        sent(&["-m", "1G", "--pids-limit", "99"]),
        json!({"required_memory_bytes": 1 << 30, "pids_limit": 99})
    );
}

#[test]
fn update_that_needs_restart_reports_it_and_ends_with_1() {
    let host = Host::start(|request| match request.method.as_str() {
        "PATCH" => Answer::accepted(ID),
        _ => {
            let mut state = task(ID, "web", "running", 2);
            state["warning"] = json!("less memory than it uses: the limit waits for a restart");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "update", "web", "-m", "1G"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("note: less memory than it uses"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: `kohakuriver vps restart web`"), "{}", ran.stderr);
}

/// A host whose node cannot execute the request now.
fn blocked(transition: &'static str) -> Host {
    Host::start(move |request| match request.method.as_str() {
        "GET" => {
            let mut state = task(ID, "web", "stopped", 2);
            if request.path.ends_with(ID) {
                state["transition"] = json!(transition);
                state["error_code"] = json!("engine_unavailable");
                state["error_message"] = json!("the Docker engine does not answer");
                state["error_hint"] = json!("`systemctl start docker` on node1");
            }
            Answer::ok(state)
        }
        _ => Answer::accepted(ID),
    })
}

#[test]
fn obstacle_of_delete_ends_the_wait() {
    let ran = Sandbox::new().run(&blocked("deleting"), &["vps", "delete", "web", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("still deleting: the Docker engine"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: `systemctl start docker`"), "{}", ran.stderr);
}

#[test]
fn delete_ignores_older_errors() {
    let asked = AtomicUsize::new(0);
    let host = Host::start(move |request| match request.method.as_str() {
        "DELETE" => Answer::accepted(ID),
        _ if request.path == "/api/status/web" => {
            let mut state = task(ID, "web", "failed", 2);
            state["error_code"] = json!("image_not_found");
            state["error_message"] = json!("no such image");
            Answer::ok(state)
        }
        _ if asked.fetch_add(1, Ordering::SeqCst) > 1 => Answer::not_found(),
        _ => {
            let mut state = task(ID, "web", "failed", 3);
            state["transition"] = json!("deleting");
            Answer::ok(state)
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "delete", "web", "--yes"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "VPS web is deleted\n"), "{}", ran.stderr);
}

#[test]
fn watch_prints_only_changes() {
    let looks = AtomicUsize::new(0);
    let host = Host::start(move |request| {
        if !request.target.contains("since=") {
            return Answer::ok(task(ID, "web", "running", 1));
        }
        match looks.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::ok(task(ID, "web", "running", 2)),
            1 => Answer::ok(task(ID, "web", "stopped", 3)),
            _ => Answer::not_found(),
        }
    });
    let ran = Sandbox::new().run(&host, &["vps", "status", "web", "--watch"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let seen: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("status:")).collect();
    assert_eq!(seen.len(), 2, "{}", ran.stdout);
    assert!(seen[1].ends_with("stopped") && ran.stderr.contains("VPS web is gone"));
}
