//! `kohakuriver vps events`

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, task};
use crate::{ID, stdout_json};

fn event(id: i64, kind: &str) -> Value {
    json!({
        "id": id, "task_id": ID, "at": "2026-01-01T00:00:00.123Z", "kind": kind,
        "actor": "jo@desk", "detail": "two\nlines",
    })
}

#[test]
fn events_are_a_table_or_an_array() {
    let host = Host::start(|request| match request.path.as_str() {
        "/api/vps/web/events" => Answer::ok(json!([event(1, "create"), event(2, "running")])),
        _ => Answer::not_found(),
    });
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&host, &["vps", "events", "web", "--limit", "2"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("TIME ") && lines[0].contains("WHO"), "{lines:?}");
    assert!(lines[1].contains("jo@desk") && lines[1].contains("create"), "{lines:?}");
    assert!(lines[1].ends_with("two lines") && lines.len() == 3, "{lines:?}");
    assert!(host.saw("GET /api/vps/web/events?limit=2"));
    let ran = sandbox.run(&host, &["vps", "events", "web", "--json"]);
    assert_eq!(stdout_json(&ran)[1]["kind"], "running");
    let ran = sandbox.run(&host, &["vps", "events", "absent"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
}

/// A VPS that exists for two polls and is deleted then; its events stay.
fn short_life() -> Host {
    let looks = AtomicUsize::new(0);
    Host::start(move |request| {
        let seen = looks.load(Ordering::SeqCst);
        if request.path.ends_with("/events") {
            assert_eq!(request.path, format!("/api/vps/{ID}/events"));
            let kinds = ["create", "running", "stop", "deleted"];
            let all = kinds.iter().zip(1..).map(|(kind, id)| event(id, kind));
            return Answer::ok(all.take(seen + 1).collect());
        }
        match looks.fetch_add(1, Ordering::SeqCst) {
            look @ 0..3 => Answer::ok(task(ID, "web", "running", u64::try_from(look).unwrap())),
            _ => Answer::not_found(),
        }
    })
}

#[test]
fn follow_prints_each_event_once_and_ends_with_vps() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&short_life(), &["vps", "events", "web", "--follow"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("VPS web is gone"), "{}", ran.stderr);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[3].contains("deleted"), "{lines:?}");

    let ran = sandbox.run(&short_life(), &["vps", "events", "web", "--follow", "--json"]);
    let ids: Vec<_> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap())
        .collect();
    assert_eq!(ids, [1, 2, 3, 4]);
}
