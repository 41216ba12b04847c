//! By those who are in the network and have not logged in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use kohakuriver_e2e::{Guarded, Site, run};
use serde_json::{Value, json};

/// The doors that lead into a VPS, and what one asks them to become.
pub fn doors(id: &str) -> Vec<(String, &'static str)> {
    let stream = |target: &str| format!("/api/vps/{id}/stream?target={target}");
    vec![
        (format!("/ws/task/{id}/terminal"), "websocket"),
        (format!("/ws/task/{id}/session"), "websocket"),
        (format!("/ws/forward/{id}/80"), "websocket"),
        (format!("/ws/fs/{id}/watch"), "websocket"),
        (stream("exec"), "kohakuriver-stream"),
        (stream("session"), "kohakuriver-stream"),
        (stream("attach"), "kohakuriver-stream"),
        (stream("files"), "kohakuriver-stream"),
        (stream("ssh"), "kohakuriver-stream"),
        (stream("tcp&port=80"), "kohakuriver-stream"),
    ]
}

/// What the SSH gateway answers to a line.
pub fn tunnel(cluster: &Guarded, line: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.site.ssh_port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = [0; 512];
    let count = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[test]
fn s2_a_runner_listens_on_no_port() {
    let cluster = Guarded::start();
    cluster.vps(&cluster.root, "web", &json!({"ssh_key_mode": "none"}));
    let sockets = sockets_of(cluster.runner.pid());
    assert!(!sockets.is_empty(), "its connections to the host are there");
    for (table, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for socket in rows(cluster.runner.pid(), table, listening) {
            assert!(!sockets.contains(&socket), "a {table} socket that anybody can send to");
        }
    }
    // The same look finds the host's.
    let host = sockets_of(cluster.host.pid());
    let found = rows(cluster.host.pid(), "tcp", "0A").into_iter().filter(|s| host.contains(s));
    assert_eq!(found.count(), 3, "API, gateway and link");
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let inode = |target: std::path::PathBuf| {
        let text = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(text.to_owned())
    };
    targets.filter_map(inode).collect()
}

/// The inodes of sockets in one state, of the network that a process is in.
fn rows(pid: u32, table: &str, state: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
    let rows = text.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == state).map(|row| row[9].to_owned()).collect()
}

#[test]
fn s4_s5_s10_who_has_not_logged_in_gets_into_nothing_and_learns_nothing() {
    let cluster = Guarded::start();
    let id = cluster.vps(&cluster.root, "web", &json!({"ssh_key_mode": "none"}));
    let unknown = "1234567890123456";
    for (path, protocol) in doors(&id) {
        assert_eq!(cluster.knock(&[], &path, protocol), 401, "{path}");
        let bad = format!("Bearer {}", "0".repeat(64));
        assert_eq!(cluster.knock(&[("Authorization", &bad)], &path, protocol), 401, "{path}");
        let owner = format!("Bearer {}", cluster.root.token);
        let expected = if path.contains("target=tcp") { 502 } else { 101 };
        let status = cluster.knock(&[("Authorization", &owner)], &path, protocol);
        assert_eq!(status, expected, "{path}: nothing listens there, all else is open");
    }
    let write = json!({"path": "/tmp/x", "content": "x"});
    for (method, path, body) in [
        ("GET", "/api/fs/{id}/list?path=/", Value::Null),
        ("GET", "/api/fs/{id}/read?path=/etc/passwd", Value::Null),
        ("GET", "/api/fs/{id}/raw?path=/etc/passwd", Value::Null),
        ("POST", "/api/fs/{id}/write", write),
        ("PUT", "/api/fs/{id}/raw?path=/tmp/x", Value::Null),
        ("DELETE", "/api/fs/{id}/delete?path=/etc/passwd", Value::Null),
        ("GET", "/api/vps/snapshots/{id}", Value::Null),
        ("POST", "/api/vps/snapshots/{id}", json!({})),
        ("DELETE", "/api/vps/snapshots/{id}", Value::Null),
        ("POST", "/api/vps/create", json!({})),
        ("POST", "/api/vps/stop/{id}", json!({})),
        ("POST", "/api/command/{id}/pause", json!({})),
        ("DELETE", "/api/vps/{id}", Value::Null),
        ("GET", "/api/status/{id}", Value::Null),
        ("GET", "/api/vps", Value::Null),
        ("GET", "/api/nodes", Value::Null),
        ("POST", "/api/nodes/tokens", json!({})),
        ("DELETE", "/api/nodes/n1", Value::Null),
        ("GET", "/api/auth/users", Value::Null),
        ("GET", "/api/audit", Value::Null),
    ] {
        let mut answers = Vec::new();
        for id in [id.as_str(), unknown] {
            let answer = cluster.ask(None, method, &path.replace("{id}", id), &body);
            assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text());
            answers.push(answer.text());
        }
        assert_eq!(answers[0], answers[1], "what is there looks as what is not");
    }
    // How the cluster is may be asked by anybody, but nothing of what it is made of.
    let health = cluster.get(None, "/api/health").ok().json();
    assert_eq!((&health["status"], &health["nodes"]), (&json!("ok"), &json!([])));
    assert_eq!(cluster.get(None, "/api/health?hostname=n1").status, 401);
    assert_eq!(cluster.get(Some(&cluster.root), "/api/status/web").json()["status"], "running");
}

#[test]
fn s3_what_runners_of_the_original_told_anybody_may_tell_is_no_path_here() {
    let cluster = Guarded::start();
    for who in [None, Some(&cluster.root)] {
        let told = json!({"hostname": "n1", "url": "http://evil.example:8001", "total_cores": 64});
        for (method, path) in [
            ("POST", "/api/register"),
            ("POST", "/api/update"),
            ("PUT", "/api/heartbeat/n1"),
            ("POST", "/api/nodes/register"),
            ("GET", "/api/docker/list"),
            ("POST", "/api/overlay/release/n1"),
            ("GET", "/api/overlay/status"),
            ("GET", "/metrics"),
        ] {
            let status = cluster.ask(who, method, path, &told).status;
            assert!([401, 403, 404, 405].contains(&status), "{method} {path}: {status}");
        }
    }
    let nodes = cluster.get(Some(&cluster.root), "/api/nodes").json();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
    assert!(!nodes.to_string().contains("evil.example"));
}

#[test]
fn s4_a_web_page_of_somebody_else_cannot_use_a_persons_session() {
    let cluster = Guarded::start();
    let id = cluster.vps(&cluster.root, "web", &json!({}));
    let here = format!("https://127.0.0.1:{}", cluster.site.port());
    let host = here.trim_start_matches("https://");
    let cookie = ("Cookie", cluster.root.cookie.as_str());
    for (path, protocol) in doors(&id) {
        let with =
            |origin| cluster.knock(&[("Host", host), cookie, ("Origin", origin)], &path, protocol);
        for evil in ["https://evil.example", "null", "https://127.0.0.1", "http://localhost:3000"] {
            assert_eq!(with(evil), 403, "{path} from {evil}");
        }
        if !path.contains("target=ssh") && !path.contains("target=tcp") {
            assert_eq!(with(&here), 101, "{path} from our own page");
        }
    }
    let headers = [("Host", host), cookie, ("Origin", "https://evil.example")];
    let stop = format!("/api/vps/stop/{id}");
    assert_eq!(cluster.send("POST", &stop, &headers, b"").status, 403);
    assert_eq!(cluster.get(Some(&cluster.root), "/api/status/web").json()["status"], "running");
}

#[test]
fn s6_the_gateway_asks_who_comes() {
    let cluster = Guarded::start();
    let (alice, mallory) = (cluster.person("alice", "user"), cluster.person("mallory", "user"));
    let key = cluster.site.make_key("alice_key");
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let id =
        cluster.vps(&alice, "web", &json!({"ssh_key_mode": "upload", "ssh_public_key": public}));
    for token in ["", "x", &"0".repeat(64), &mallory.token, &format!("{} x", alice.token)] {
        let answer = tunnel(&cluster, &format!("REQUEST_TUNNEL {id} {token}"));
        assert!(answer.starts_with("ERROR "), "{token}: {answer}");
    }
    // Whether it exists is not told to who may not enter.
    let there = tunnel(&cluster, &format!("REQUEST_TUNNEL {id} {}", mallory.token));
    let not = tunnel(&cluster, &format!("REQUEST_TUNNEL 1234567890123456 {}", mallory.token));
    assert_eq!(there.replace(&id, "ID"), not.replace("1234567890123456", "ID"));
    let answer = tunnel(&cluster, &format!("REQUEST_TUNNEL {id} {}", alice.token));
    assert!(answer.starts_with("SUCCESS\n"), "{answer}");
    // Jumps: a key that opens the VPS does not open the gateway until somebody's account has it.
    let jump = |key: &std::path::Path| {
        let mut ssh = cluster.site.plain_ssh("ssh", key);
        run(ssh.args([&format!("root@{id}"), "id", "-u"]))
    };
    jump(&key).fails(255, &["Permission denied"]);
    cluster.post(Some(&alice), "/api/auth/keys", &json!({"key": public})).ok();
    assert_eq!(jump(&key).ok(), "0\n");
    // Mallory may come to the gateway, and gets no further.
    let other = cluster.site.make_key("mallory_key");
    let theirs = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    cluster.post(Some(&mallory), "/api/auth/keys", &json!({"key": theirs})).ok();
    assert_eq!(jump(&other).code, 255);
    let mut ssh = cluster.site.plain_ssh("ssh", &other);
    ssh.args(["-p", &cluster.site.ssh_port().to_string(), "root@127.0.0.1", "id"]);
    assert_ne!(run(&mut ssh).code, 0, "there is no shell on the gateway");
    // What is registered is one person's.
    let taken = cluster.post(Some(&mallory), "/api/auth/keys", &json!({"key": public}));
    assert_eq!((taken.status, taken.code()), (409, "key_taken".to_owned()));
}

#[test]
fn s11_a_host_that_the_network_reaches_is_open_only_when_somebody_says_so_outright() {
    let site = Site::new();
    let start = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg("20").arg(kohakuriver_e2e::executable()).arg("host").args(arguments);
        run(command
            .args(["--port", "0", "--ssh-port", "0", "--link-port", "0", "--data-dir"])
            .arg(site.data_dir()))
    };
    start(&["--bind", "0.0.0.0", "--no-auth"]).fails(2, &["requires no login"]);
    start(&["--no-auth", "--trusted-proxy", "10.0.0.1"]).fails(2, &["requires no login"]);
    let cluster = Guarded::start();
    let status = cluster.get(None, "/api/auth/status").ok().json();
    assert_eq!((&status["auth_enabled"], &status["needs_setup"]), (&json!(true), &json!(false)));
}

#[test]
fn s12_s13_strangers_make_no_accounts_and_no_tokens_and_an_invitation_works_once() {
    let cluster = Guarded::start();
    let made = cluster.post(None, "/api/auth/tokens/create", &json!({"name": "x"}));
    assert_eq!(made.status, 401);
    for header in ["X-Admin-Token", "X-Admin-Secret", "X-Admin-Register-Secret"] {
        for secret in ["", "admin", "secret", "changeme"] {
            let headers = [(header, secret), ("Content-Type", "application/json")];
            let answer =
                cluster.send("POST", "/api/auth/invitations", &headers, b"{\"role\":\"admin\"}");
            assert_eq!(answer.status, 401, "{header}: {secret}");
        }
    }
    let invited =
        cluster.post(Some(&cluster.root), "/api/auth/invitations", &json!({"role": "user"}));
    let invitation = invited.ok().json()["token"].as_str().unwrap().to_owned();
    let register = |name: &str, invitation: &str| {
        let body = json!({"username": name, "password": "correct horse", "role": "admin"});
        cluster.post(None, &format!("/api/auth/register?token={invitation}"), &body)
    };
    for bad in ["", "admin", &"0".repeat(64), &invitation[..63]] {
        assert_eq!(register("mallory", bad).status, 400, "{bad}");
    }
    let alice = register("alice", &invitation).ok().json();
    assert_eq!(alice["user"]["role"], "user", "the invitation says the role, not the guest");
    assert_eq!(register("mallory", &invitation).status, 400);
    // The first admin's, too; and starting the host again makes no new one.
    let line = cluster.host.log();
    let setup = line.split("--token ").nth(1).unwrap().split_whitespace().next().unwrap();
    assert_eq!(register("mallory", setup).status, 400);
    let users = cluster.get(Some(&cluster.root), "/api/auth/users").json();
    assert_eq!(users.as_array().unwrap().len(), 2, "{users}");
}

#[test]
fn s15_nothing_travels_in_the_clear_and_the_cookie_is_only_for_https() {
    let cluster = Guarded::start();
    let mut plain = TcpStream::connect(("127.0.0.1", cluster.site.port())).unwrap();
    let request = "GET /api/auth/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    plain.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = plain.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 400") && !answer.contains("auth_enabled"), "{answer}");
    let login = json!({"username": "root", "password": cluster.root.password()});
    let answer = cluster.post(None, "/api/auth/login", &login).ok();
    let cookies = answer.headers("set-cookie");
    let [cookie] = cookies[..] else { panic!("one cookie, not {cookies:?}") };
    assert!(cookie.starts_with("kohakuriver_session="), "{cookie}");
    for flag in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(flag), "{flag} in {cookie}");
    }
    // A stranger who says that the request came by a proxy is not one.
    let headers = [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("Content-Type", "application/json"),
    ];
    let answer =
        cluster.send("POST", "/api/auth/login", &headers, login.to_string().as_bytes()).ok();
    assert!(answer.headers("set-cookie")[0].contains("Secure"));
    // The command line tells nobody its token over plain http, or without knowing the host.
    let plain = format!("http://10.255.255.1:{}", cluster.site.port());
    let refused = cluster.kr(&cluster.root, &["--host", &plain, "vps", "list"]);
    assert_ne!(refused.code, 0);
    assert!(!refused.stderr.contains(&cluster.root.token), "{}", refused.stderr);
}

#[test]
fn s16_s28_guessing_is_slow_for_who_guesses_and_tells_nothing() {
    let cluster = Guarded::start();
    let try_to = |name: &str, password: &str| {
        let began = Instant::now();
        let login = json!({"username": name, "password": password});
        let answer = cluster.post(None, "/api/auth/login", &login);
        (answer.status, answer.text(), began.elapsed())
    };
    cluster.person("alice", "user");
    let (mut wrong, mut unknown) = (Duration::MAX, Duration::MAX);
    for _ in 0..4 {
        let (known, nobody) = (try_to("alice", "nonsense!"), try_to("nobody", "nonsense!"));
        assert_eq!((known.0, &known.1), (401, &nobody.1), "both look the same");
        (wrong, unknown) = (wrong.min(known.2), unknown.min(nobody.2));
    }
    let ratio = wrong.as_secs_f64() / unknown.as_secs_f64();
    assert!((0.3..3.0).contains(&ratio), "and last as long: {wrong:?} and {unknown:?}");
    // Longer than bcrypt can take, and longer than anybody types.
    assert_eq!(try_to("alice", &"x".repeat(100)).0, 401);
    assert_eq!(try_to("alice", &"x".repeat(60_000)).0, 401);
    assert_eq!(try_to("alice", &"x".repeat(100_000)).0, 413, "more than a stranger may send");
    let statuses: Vec<_> = (0..8).map(|_| try_to("alice", "nonsense!").0).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    let right = try_to("alice", cluster.root.password());
    assert_eq!(right.0, 429, "the right password has to wait, too");
    // Other people's requests go on meanwhile.
    std::thread::scope(|scope| {
        let guessers: Vec<_> = (0..8)
            .map(|number| {
                let try_to = &try_to;
                scope.spawn(move || try_to(&format!("guess{number}"), "nonsense!"))
            })
            .collect();
        let mut slowest = Duration::ZERO;
        while guessers.iter().any(|guesser| !guesser.is_finished()) {
            let began = Instant::now();
            cluster.get(None, "/api/auth/status").ok();
            slowest = slowest.max(began.elapsed());
        }
        assert!(slowest < Duration::from_secs(30), "{slowest:?}");
    });
}

#[test]
fn s26_what_the_api_looks_like_is_for_those_who_log_in_and_what_they_do_is_written_down() {
    let cluster = Guarded::start();
    assert_eq!(cluster.get(None, "/openapi.json").status, 401);
    for path in ["/docs", "/redoc", "/debug", "/.git/config", "/api/../../../etc/passwd"] {
        let status = cluster.get(None, path).status;
        assert!([400, 401, 404].contains(&status), "{path}: {status}");
    }
    let alice = cluster.person("alice", "user");
    let id = cluster.vps(&alice, "web", &json!({}));
    cluster.inside(&alice, &id, "true").ok();
    assert_eq!(cluster.delete(Some(&alice), "/api/nodes/n1").status, 403);
    let login = json!({"username": "alice", "password": "wrong guess"});
    assert_eq!(cluster.post(None, "/api/auth/login", &login).status, 401);
    let entries = cluster.get(Some(&cluster.root), "/api/audit").ok().text();
    for action in ["auth.register", "vps.create", "session.begin", "node.remove", "auth.login"] {
        assert!(entries.contains(action), "{action}: {entries}");
    }
    for secret in [&alice.token, &cluster.root.token, "wrong guess"] {
        assert!(!entries.contains(secret), "{secret}");
    }
    assert_eq!(cluster.get(Some(&alice), "/api/audit").status, 403);
    let verified = cluster.get(Some(&cluster.root), "/api/audit/verify").ok();
    assert!(verified.text().contains("true"), "{}", verified.text());
}
