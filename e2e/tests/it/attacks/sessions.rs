//! By somebody who is in, after the right to be there has gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kohakuriver_agent_protocol::tunnel::{Kind, Proto, TunnelFrame};
use kohakuriver_e2e::{Connection, Guarded, Person, run, wait_until};
use serde_json::json;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

/// The promise is five seconds; the rest is for a computer that is busy with other work.
const CUT_WITHIN: Duration = Duration::from_secs(30);

/// Ends when it is dropped, however the test goes.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until the first bytes, and then until the end, which it reports.
fn follow(
    name: &'static str,
    mut stream: impl Read + Send + 'static,
    ends: &mpsc::Sender<&'static str>,
) {
    let (begun, began) = mpsc::channel();
    let ends = ends.clone();
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        let mut first = true;
        while let Ok(count) = stream.read(&mut block) {
            if count == 0 {
                break;
            }
            if std::mem::take(&mut first) {
                let _ = begun.send(());
            }
        }
        let _ = ends.send(name);
    });
    began.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("{name} never began"));
}

fn websocket(cluster: &Guarded, who: &Person, path: &str) -> WebSocket<Connection> {
    let uri = format!("wss://127.0.0.1:{}{path}", cluster.site.port()).parse().unwrap();
    let request = ClientRequestBuilder::new(uri)
        .with_header("Authorization", format!("Bearer {}", who.token));
    client(request, cluster.connect()).unwrap().0
}

/// Reads messages until the end, which it reports.
fn follow_socket(
    name: &'static str,
    mut socket: WebSocket<Connection>,
    ends: &mpsc::Sender<&'static str>,
) {
    let ends = ends.clone();
    std::thread::spawn(move || {
        while socket.read().is_ok_and(|message| !message.is_close()) {}
        let _ = ends.send(name);
    });
}

fn exec(cluster: &Guarded, who: &Person, id: &str) -> Background {
    let mut command = cluster.command(who);
    command.args(["terminal", "exec", id, "--", "sh", "-c", "echo in; exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Background(command.spawn().unwrap())
}

/// Opens every door there is, and holds it open.
fn enter_everywhere(
    cluster: &Guarded,
    who: &Person,
    id: &str,
    key: &std::path::Path,
    ends: &mpsc::Sender<&'static str>,
) -> Vec<Background> {
    let mut held = Vec::new();
    let mut program = exec(cluster, who, id);
    follow("exec", program.0.stdout.take().unwrap(), ends);
    held.push(program);

    let mut ssh = Command::new("ssh");
    ssh.args(cluster.site.plain_ssh("ssh", key).get_args());
    ssh.args([
        "-W",
        &format!("{id}:22"),
        "-p",
        &cluster.site.ssh_port().to_string(),
        "you@127.0.0.1",
    ]);
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut ssh = Background(ssh.spawn().unwrap());
    follow("jump", ssh.0.stdout.take().unwrap(), ends);
    held.push(ssh);

    let mut tunnel = TcpStream::connect(("127.0.0.1", cluster.site.ssh_port())).unwrap();
    tunnel.write_all(format!("REQUEST_TUNNEL {id} {}\n", who.token).as_bytes()).unwrap();
    let mut word = [0; 8];
    tunnel.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"SUCCESS\n");
    follow("tunnel", tunnel, ends);

    let mut terminal = websocket(cluster, who, &format!("/ws/task/{id}/terminal"));
    let size = json!({"type": "resize", "rows": 24, "cols": 80}).to_string();
    terminal.send(Message::text(size)).unwrap();
    assert!(terminal.read().unwrap().is_text());
    follow_socket("terminal", terminal, ends);

    let mut forward = websocket(cluster, who, &format!("/ws/forward/{id}/7000?proto=tcp"));
    assert_eq!(forward.read().unwrap().to_text().unwrap(), "CONNECTED");
    let payload = Bytes::new();
    let connect =
        TunnelFrame { kind: Kind::Connect, proto: Proto::Tcp, client: 1, port: 7000, payload };
    forward.send(Message::Binary(connect.encode())).unwrap();
    let frame = TunnelFrame::decode(forward.read().unwrap().into_data()).unwrap();
    assert_eq!(frame.kind, Kind::Connected);
    follow_socket("forward", forward, ends);

    let watch = websocket(cluster, who, &format!("/ws/fs/{id}/watch?path=/tmp"));
    follow_socket("watch", watch, ends);
    held
}

const DOORS: usize = 6;

#[test]
fn who_may_not_be_there_any_more_is_out_within_five_seconds_by_every_door() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let id = cluster.vps(&alice, "web", &json!({"ssh_key_mode": "none"}));
    let service = "nc -ll -p 7000 -e cat >/dev/null 2>&1 & sleep 0.3";
    cluster.kr(&alice, &["terminal", "exec", &id, "--", "setsid", "sh", "-c", service]).ok();
    // The owner's own session goes on through all of it.
    let mut own = exec(&cluster, &alice, &id);
    let (own_ends, own_end) = mpsc::channel();
    follow("own", own.0.stdout.take().unwrap(), &own_ends);
    for what in ["share", "credentials", "account", "role"] {
        let bob = cluster.person(&format!("bob-{what}"), "user");
        let key = cluster.site.make_key(what);
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let registered =
            cluster.post(Some(&bob), "/api/auth/keys", &json!({"key": public})).ok().json();
        cluster.share(&alice, &id, &bob, "use");
        let (ends, ended) = mpsc::channel();
        let _held = enter_everywhere(&cluster, &bob, &id, &key, &ends);
        std::thread::sleep(Duration::from_millis(500));
        assert!(ended.try_recv().is_err(), "all of them stand until then");
        let account = format!("/api/auth/users/{}", bob.id);
        match what {
            "share" => {
                let path = format!("/api/vps/{id}/shares?user={}", bob.name);
                cluster.delete(Some(&alice), &path).ok();
            }
            "credentials" => {
                let path = format!("/api/auth/keys/{}", registered["id"]);
                cluster.delete(Some(&bob), &path).ok();
                let path = format!("/api/auth/tokens/{}", bob.token_id);
                cluster.delete(Some(&bob), &path).ok();
            }
            "account" => {
                cluster
                    .ask(Some(&cluster.root), "PATCH", &account, &json!({"is_active": false}))
                    .ok();
            }
            _ => {
                cluster
                    .ask(Some(&cluster.root), "PATCH", &account, &json!({"role": "viewer"}))
                    .ok();
            }
        }
        let began = Instant::now();
        let mut out = Vec::new();
        while out.len() < DOORS {
            let left = CUT_WITHIN.saturating_sub(began.elapsed());
            match ended.recv_timeout(left) {
                Ok(door) => out.push(door),
                Err(_) => panic!("{what}: only {out:?} ended within {CUT_WITHIN:?}"),
            }
        }
        // And none opens again.
        for (path, protocol) in super::network::doors(&id) {
            let header = format!("Bearer {}", bob.token);
            let status = cluster.knock(&[("Authorization", &header)], &path, protocol);
            assert!([401, 403, 404].contains(&status), "{what}: {path}: {status}");
        }
        let line = format!("REQUEST_TUNNEL {id} {}", bob.token);
        assert!(super::network::tunnel(&cluster, &line).starts_with("ERROR "), "{what}");
        assert!(own_end.try_recv().is_err(), "{what}: the owner was thrown out as well");
    }
    let audit = cluster.get(Some(&cluster.root), "/api/audit?limit=200").ok().text();
    assert!(audit.contains("\"cut\""), "the audit log says that they were cut: {audit}");
}

/// SSH from the node to a VPS's own port 22, with a key and the certificate beside it, if there is one.
fn straight(cluster: &Guarded, address: &str, key: &Path) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]);
    ssh.args(["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o"]);
    ssh.arg(format!("UserKnownHostsFile={}", cluster.site.path().join("straight").display()));
    ssh.arg("-i").arg(key).arg(format!("root@{address}")).env_remove("SSH_AUTH_SOCK");
    ssh
}

/// A key with a certificate for that VPS.
fn certified(cluster: &Guarded, who: &Person, id: &str) -> PathBuf {
    let key = cluster.site.make_key(&format!("cert-of-{}", who.name));
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let path = format!("/api/vps/{id}/ssh-cert");
    let signed = cluster.post(Some(who), &path, &json!({"public_key": public})).ok().json();
    let beside = format!("{}-cert.pub", key.display());
    std::fs::write(beside, signed["certificate"].as_str().unwrap()).unwrap();
    key
}

#[test]
fn who_came_past_the_host_to_a_vps_own_port_22_is_out_within_five_seconds_as_well() {
    let cluster = Guarded::start();
    let (alice, bob) = (cluster.person("alice", "user"), cluster.person("bob", "user"));
    let id = cluster.vps(&alice, "web", &json!({"ssh_key_mode": "none"}));
    cluster.share(&alice, &id, &bob, "use");
    let registered = cluster.site.make_key("registered");
    let public = std::fs::read_to_string(registered.with_extension("pub")).unwrap();
    cluster.post(Some(&bob), "/api/auth/keys", &json!({"key": public})).ok();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let inspect = ["inspect", "--format", format, &format!("kohakuriver-vps-{id}")];
    let address = run(Command::new("docker").args(inspect)).ok().trim().to_owned();
    let logs_in = |key: &Path| run(straight(&cluster, &address, key).arg("true")).code == 0;
    wait_until("the VPS has heard of the key", CUT_WITHIN, || logs_in(&registered));
    let (own, bobs) = (certified(&cluster, &alice, &id), certified(&cluster, &bob, &id));
    let (ends, ended) = mpsc::channel();
    let mut held = Vec::new();
    for (name, key) in [("owner", &own), ("key", &registered), ("certificate", &bobs)] {
        let mut ssh = straight(&cluster, &address, key);
        ssh.arg("echo in; exec cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut ssh = Background(ssh.spawn().unwrap());
        follow(name, ssh.0.stdout.take().unwrap(), &ends);
        held.push(ssh);
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(ended.try_recv().is_err(), "all of them stand until then");
    cluster.delete(Some(&alice), &format!("/api/vps/{id}/shares?user=bob")).ok();
    let began = Instant::now();
    let mut out: Vec<_> = (0..2)
        .map(|_| {
            let left = CUT_WITHIN.saturating_sub(began.elapsed());
            ended.recv_timeout(left).expect("they are cut")
        })
        .collect();
    out.sort_unstable();
    assert_eq!(out, ["certificate", "key"]);
    // The certificate has minutes left, and opens nothing any more.
    assert!(!logs_in(&registered) && !logs_in(&bobs));
    assert!(logs_in(&own) && ended.try_recv().is_err(), "the owner is in as before");
}

#[test]
fn a_session_that_is_logged_out_takes_its_connections_along() {
    let cluster = Guarded::start();
    let alice = cluster.person("alice", "user");
    let id = cluster.vps(&alice, "web", &json!({}));
    let headers = [("Cookie", alice.cookie.as_str()), ("Host", "127.0.0.1")];
    let mut stream = cluster.connect();
    let upgrade = [("Connection", "upgrade"), ("Upgrade", "kohakuriver-stream")];
    let path = format!("/api/vps/{id}/stream?target=session");
    let answer = kohakuriver_e2e::exchange(
        &mut stream,
        "GET",
        &path,
        &[&upgrade[..], &headers].concat(),
        b"",
    );
    assert_eq!(answer.status, 101);
    let (ends, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        while stream.read(&mut block).is_ok_and(|count| count > 0) {}
        let _ = ends.send(());
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(ended.try_recv().is_err(), "it stands");
    cluster.send("POST", "/api/auth/logout", &headers, b"").ok();
    ended.recv_timeout(CUT_WITHIN).unwrap();
    let me = cluster.send("GET", "/api/auth/me", &headers, b"").ok();
    wait_until("the cookie means nothing", CUT_WITHIN, || me.json()["username"] == "_anonymous");
}
