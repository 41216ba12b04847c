//! Revoking a right ends everything that uses it, within five seconds: every lasting route of the
//! routing table is opened, held, and then loses its share, token, role, account or session. A
//! lasting route that is missing here fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kohakuriver_testkit::{FakeRunner, PASSWORD, Person, TestHost};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// The documented limit, doubled for a busy computer.
const CUT_WITHIN: Duration = Duration::from_secs(10);
/// Longer than any of these lasts on its own.
const LIMIT: Duration = Duration::from_secs(30);

/// How a request is kept open.
enum Hold {
    /// Its response does not come, because the instance or its node does not respond.
    Request(&'static str),
    Upload,
    Stream,
    Socket,
    /// It ends on its own within seconds, however silent its node is.
    Bounded,
}

/// Query or body of each route, with `{id}` of the instance.
fn hold(method: &str, path: &str) -> Option<Hold> {
    Some(match (method, path) {
        ("GET", "/api/status/{task}") => Hold::Request("?since={revision}&timeout=30"),
        ("POST", "/api/vps/create") => Hold::Request(r#"{"ssh_key_mode":"none"}"#),
        ("POST", "/api/command/{task}/{command}") => Hold::Request("{}"),
        ("POST", "/api/vps/restart/{task}") => Hold::Request("?from_snapshot=latest"),
        ("GET", "/api/vps/snapshots/{task}" | "/api/vps/snapshots/{task}/latest") => {
            Hold::Request("")
        }
        ("POST", "/api/vps/snapshots/{task}") => Hold::Request("{}"),
        ("DELETE", "/api/vps/snapshots/{task}" | "/api/vps/snapshots/{task}/{which}") => {
            Hold::Request("")
        }
        ("POST", "/api/vps/snapshots/{task}/{which}/restore") => Hold::Request(""),
        ("GET", "/api/fs/{task}/list" | "/api/fs/{task}/stat" | "/api/fs/{task}/read") => {
            Hold::Request("?path=/x")
        }
        ("GET", "/api/fs/{task}/raw") => Hold::Request("?path=/endless"),
        ("POST", "/api/fs/{task}/mkdir") => Hold::Request(r#"{"path":"/x"}"#),
        ("POST", "/api/fs/{task}/write") => Hold::Request(r#"{"path":"/x","content":""}"#),
        ("POST", "/api/fs/{task}/rename") => Hold::Request(r#"{"source":"/x","destination":"/y"}"#),
        ("DELETE", "/api/fs/{task}/delete") => Hold::Request("?path=/x"),
        ("PUT", "/api/fs/{task}/raw") => Hold::Upload,
        ("GET", "/api/vps/{task}/stream") => Hold::Stream,
        (_, path) if path.starts_with("/ws/") => Hold::Socket,
        ("GET", "/api/vm/images/{hostname}" | "/api/vps/vm-instances") => Hold::Bounded,
        ("DELETE", "/api/vps/vm-instances/{task}") => Hold::Bounded,
        ("GET", "/api/audit/export" | "/api/audit/verify") => Hold::Bounded,
        _ => return None,
    })
}

/// A caller's credential.
#[derive(Clone)]
struct Shown(String);

/// A request that is held open; the task ends when the host has ended it.
struct Held {
    name: String,
    ended: JoinHandle<()>,
}

struct Lab {
    host: TestHost,
    /// The instance whose streams are held, and one for requests that change it.
    ids: [String; 2],
    streams: Arc<AtomicUsize>,
}

impl Lab {
    async fn new() -> Result<Self> {
        let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
        let streams = Arc::new(AtomicUsize::new(0));
        let count = streams.clone();
        let runner = FakeRunner::join_with_agent(&host, "n1", move |_, mut stream| {
            count.fetch_add(1, Ordering::SeqCst);
            // Reads everything, and sends nothing.
            async move { while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} }
        })
        .await?;
        let mut ids = Vec::new();
        for name in ["held", "changed"] {
            let wish = json!({"name": name, "ssh_key_mode": "none"});
            let made = host.post("/api/vps/create", wish).await?;
            anyhow::ensure!(made.status == 200, "{made:?}");
            ids.push(made.text("task_id").to_owned());
        }
        runner.fall_silent();
        // For as long as the test runs.
        std::mem::forget(runner);
        let ids = [ids.remove(0), ids.remove(0)];
        Ok(Self { host, ids, streams })
    }

    async fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.host.host.api_address()).await?)
    }

    /// Returns the session's cookie of a log-in.
    async fn log_in(&self, who: &Person) -> Result<Shown> {
        let body = json!({"username": who.name, "password": PASSWORD}).to_string();
        let mut stream = self.connect().await?;
        let head = format!(
            "POST /api/auth/login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let line = answer.lines().find(|line| line.to_lowercase().starts_with("set-cookie:"));
        let cookie = line.and_then(|line| line.split([':', ';']).nth(1)).context("a cookie")?;
        Ok(Shown(format!("Cookie: {}", cookie.trim())))
    }

    async fn send(&self, shown: &Shown, method: &str, path: &str, more: &str) -> Result<TcpStream> {
        let mut stream = self.connect().await?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n{more}", shown.0);
        stream.write_all(head.as_bytes()).await?;
        Ok(stream)
    }

    /// Returns the revision of the instance, once earlier changes have reached it.
    async fn revision(&self) -> Result<String> {
        let path = format!("/api/status/{}", self.ids[0]);
        let mut last = self.host.get(&path).await?.body["revision"].to_string();
        loop {
            let wait = format!("{path}?since={last}&timeout=2");
            let now = self.host.get(&wait).await?.body["revision"].to_string();
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Opens the route's target.
    async fn open(
        &self,
        shown: &Shown,
        (method, path): (&str, &str),
        revision: &str,
    ) -> Result<Option<Held>> {
        let how = hold(method, path).with_context(|| format!("{method} {path} has no row here"))?;
        let changes = path.contains("command") || path.contains("restart");
        let url = path
            .replace("{task}", &self.ids[usize::from(changes)])
            .replace("{command}", "pause")
            .replace("{which}", "77")
            .replace("{port}", "80");
        let mut uploads = false;
        let stream = match how {
            Hold::Bounded => return Ok(None),
            Hold::Request(query) if query.is_empty() || query.starts_with('?') => {
                let query = query.replace("{revision}", revision);
                let more = "Connection: close\r\n\r\n";
                self.send(shown, method, &format!("{url}{query}"), more).await?
            }
            Hold::Request(body) => {
                let more = format!(
                    "Connection: close\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                self.send(shown, method, &url, &more).await?
            }
            Hold::Upload => {
                uploads = true;
                let more = "Transfer-Encoding: chunked\r\n\r\n";
                self.send(shown, method, &format!("{url}?path=/x"), more).await?
            }
            Hold::Stream => {
                let more = "Connection: upgrade\r\nUpgrade: kohakuriver-stream\r\n\r\n";
                self.send(shown, method, &format!("{url}?target=session"), more).await?
            }
            Hold::Socket => {
                let more = "Connection: upgrade\r\nUpgrade: websocket\r\n\
                            Sec-WebSocket-Version: 13\r\n\
                            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
                self.send(shown, method, &url, more).await?
            }
        };
        let ended = tokio::spawn(follow(stream, uploads));
        Ok(Some(Held { name: format!("{method} {path}"), ended }))
    }
}

/// Reads until the end, and sends a chunk of a body now and then for an upload.
async fn follow(stream: TcpStream, uploads: bool) {
    let (mut reader, mut writer) = stream.into_split();
    let reading = async {
        let mut block = [0; 4096];
        while reader.read(&mut block).await.is_ok_and(|count| count > 0) {}
    };
    let sending = async {
        while uploads && writer.write_all(b"5\r\nafter\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = sending => {}
    }
}

/// Opens every lasting request, and revokes the right by `revoke`.
async fn all_end(
    lab: &Lab,
    what: &str,
    shown: &Shown,
    only_instances: bool,
    revoke: impl Future<Output = Result<u16>>,
) -> Result<()> {
    let mut held = Vec::new();
    let mut streams = 0;
    let before = lab.streams.load(Ordering::SeqCst);
    let revision = lab.revision().await?;
    for (method, path) in kohakuriver_host::lasting_rows() {
        if only_instances && path == "/api/vps/create" {
            continue;
        }
        let Some(opened) = lab.open(shown, (method, path), &revision).await? else { continue };
        let inside = ["/api/fs/", "/ws/", "/api/vps/{task}/stream"];
        streams += usize::from(inside.iter().any(|inside| path.starts_with(inside)));
        held.push(opened);
    }
    let deadline = Instant::now() + LIMIT;
    while lab.streams.load(Ordering::SeqCst) - before < streams {
        anyhow::ensure!(Instant::now() < deadline, "{what}: not all streams were opened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let early: Vec<_> =
        held.iter().filter(|held| held.ended.is_finished()).map(|held| &held.name).collect();
    assert!(early.is_empty(), "{what}: {early:?} ended by themselves");
    let status = revoke.await?;
    assert!(status < 300, "{what}: {status}");
    let revoked = Instant::now();
    for Held { name, ended } in held {
        let left = CUT_WITHIN.saturating_sub(revoked.elapsed());
        let ended = tokio::time::timeout(left, ended).await;
        assert!(ended.is_ok(), "{what}: {name} went on for {CUT_WITHIN:?}");
    }
    Ok(())
}

#[tokio::test]
async fn revoked_right_ends_every_lasting_request() -> Result<()> {
    let lab = Lab::new().await?;
    let host = &lab.host;
    let token = |who: &Person| Shown(format!("Authorization: Bearer {}", who.token));

    let user = host.person("by-share", "user").await?;
    for id in &lab.ids {
        let share = json!({"user": user.name, "level": "manage"});
        let path = format!("/api/vps/{id}/shares");
        let shared = host.put_json(&path, share).await?;
        anyhow::ensure!(shared.status == 200, "{shared:?}");
    }
    let revoke = async {
        let mut last = 0;
        for id in &lab.ids {
            let path = format!("/api/vps/{id}/shares?user={}", user.name);
            last = host.delete(&path).await?.status;
        }
        Ok(last)
    };
    all_end(&lab, "share", &token(&user), true, revoke).await?;

    let admin = host.person("by-token", "admin").await?;
    let tokens = host.get_as(&admin, "/api/auth/tokens").await?.body;
    let path = format!("/api/auth/tokens/{}", tokens[0]["id"]);
    let revoke = async { Ok(host.ask(Some(&admin), "DELETE", &path, None).await?.status) };
    all_end(&lab, "token", &token(&admin), false, revoke).await?;

    for (what, change) in
        [("role", json!({"role": "viewer"})), ("account", json!({"is_active": false}))]
    {
        let admin = host.person(&format!("by-{what}"), "admin").await?;
        let path = format!("/api/auth/users/{}", admin.id);
        let revoke = async { Ok(host.patch(&path, change).await?.status) };
        all_end(&lab, what, &token(&admin), false, revoke).await?;
    }

    let admin = host.person("by-session", "admin").await?;
    let cookie = lab.log_in(&admin).await?;
    let revoke = async {
        let more = "Connection: close\r\nContent-Length: 0\r\n\r\n";
        let mut stream = lab.send(&cookie, "POST", "/api/auth/logout", more).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok());
        status.with_context(|| format!("{answer:?}"))
    };
    all_end(&lab, "session", &cookie, false, revoke).await
}
