//! An attack by one account: opens as many lasting connections as the host permits, sends data that
//! no service reads, and reads no response.
//!
//! The attacker and the node, whose instance takes nothing, are a process of their own: the memory and
//! processor time of the process under test are the host's.
//!
//! ```text
//!  Siege (host, other account) --starts, join token in JOIN--> attack(): joins as a node
//!                              --target as a line of JSON----> attacks until the end of its input
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{FakeRunner, Person, TestHost};

const ZEROES: &[u8] = &[0; 1024 * 1024];
/// Half of a text that takes as much memory again when it is parsed.
const ESCAPES: &[u8] = b"\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9";
const SOCKETS: usize = 48;
const CONNECTIONS: u32 = 30;
const STREAMS: usize = 400;
const JUMPS: usize = 40;
const SSH_CLIENTS: usize = 3;

/// The environment variable that passes the join token to the other process.
const JOIN: &str = "KOHAKURIVER_TESTKIT_JOIN";

/// The attacked host, the attacking account and its instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub api: SocketAddr,
    pub ssh: SocketAddr,
    pub who: Person,
    pub task: String,
    /// Path of a private key that the account has registered.
    pub key: PathBuf,
}

/// A host with an account that can attack it.
#[derive(Debug)]
pub struct Siege {
    pub host: TestHost,
    /// The account whose requests are timed during the attack.
    pub alice: Person,
    target: Target,
    /// The attacker's process, which ends at the end of its input.
    attacker: Child,
    _dir: tempfile::TempDir,
}

impl Siege {
    /// Starts a host with accounts, and the node's process, in which the attacker's instance reads
    /// nothing. `arguments` are those by which this executable calls [`attack`].
    pub async fn prepare(arguments: &[&str]) -> Result<Self> {
        kohakuriver_net::raise_file_limit()?;
        let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
        let attacker = Command::new(std::env::current_exe()?)
            .args(arguments)
            .env(JOIN, host.join_token().await?.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("the attacker's process")?;
        let who = host.person("mallory", "admin").await?;
        let alice = host.person("alice", "user").await?;
        let dir = tempfile::tempdir()?;
        let key = dir.path().join("key");
        let mut keygen = Command::new("ssh-keygen");
        let keygen = keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        anyhow::ensure!(keygen.await?.success(), "a key is made");
        let public = std::fs::read_to_string(key.with_extension("pub"))?;
        let added = host.post_as(&who, "/api/auth/keys", json!({"key": public.trim()})).await?;
        anyhow::ensure!(added.status < 300, "{added:?}");
        let node = async {
            while host.get("/api/nodes").await?.body[0]["status"] != "online" {
                sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        timeout(Duration::from_secs(60), node).await.context("the node joins")??;
        let create = json!({"name": "web", "ssh_key_mode": "none"});
        let made = host.post_as(&who, "/api/vps/create", create).await?;
        anyhow::ensure!(made.status == 200, "{made:?}");
        let (api, ssh) = (host.host.api_address(), host.host.ssh_address());
        let target = Target { api, ssh, who, task: made.text("task_id").to_owned(), key };
        Ok(Self { host, alice, target, attacker, _dir: dir })
    }

    /// Begins the attack, which continues until [`Siege::end`].
    pub async fn begin(&mut self) -> Result<()> {
        let target = format!("{}\n", serde_json::to_string(&self.target)?);
        let input = self.attacker.stdin.as_mut().context("the attack has ended")?;
        input.write_all(target.as_bytes()).await.context("the attacker's process is gone")
    }

    /// Ends the attack and waits for the attacker's exit.
    pub async fn end(&mut self) -> Result<()> {
        drop(self.attacker.stdin.take());
        let status = self.attacker.wait().await?;
        anyhow::ensure!(status.success(), "the attacker's process: {status}");
        Ok(())
    }
}

/// Runs the other process: a node whose instances read nothing, then the attack on the target that
/// [`Siege::begin`] sends, until the end of input.
///
/// # Errors
/// It was not started by [`Siege::prepare`], or OpenSSH's client cannot be started.
pub async fn attack() -> Result<()> {
    kohakuriver_net::raise_file_limit()?;
    let token = std::env::var(JOIN).context("only Siege::prepare starts an attacker")?.parse()?;
    let dir = tempfile::tempdir()?;
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let takes_nothing = |_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    };
    let _node = FakeRunner::join_by(&token, "n1", dir.path(), now_ms, takes_nothing).await?;
    let mut input = BufReader::new(tokio::io::stdin());
    let mut target = String::new();
    if input.read_line(&mut target).await? == 0 {
        return Ok(());
    }
    let attack = Attack::begin(&serde_json::from_str(&target)?)?;
    input.read_to_end(&mut Vec::new()).await?;
    drop(attack);
    Ok(())
}

/// Runs all attacks concurrently.
struct Attack {
    tasks: JoinSet<()>,
    ssh: Vec<Child>,
}

/// Returns a line of `/proc/self/status` in bytes, such as `VmRSS` of this process.
pub fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such line")?;
    let kibibytes = line.split_whitespace().nth(1).context("no number")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}

impl Attack {
    fn begin(target: &Target) -> Result<Self> {
        let mut flood = Self { tasks: JoinSet::new(), ssh: Vec::new() };
        for number in 0..SOCKETS {
            flood.repeat(target, move |target| forward(target, number % 2 == 0));
        }
        for _ in 0..STREAMS {
            flood.repeat(target, stream);
        }
        for _ in 0..200 {
            flood.repeat(target, slow_log_in);
        }
        for path in ["read?path=/x", "list?path=/x"] {
            for _ in 0..32 {
                flood.repeat(target, move |target| unread(target, path));
            }
        }
        for _ in 0..4 {
            flood.repeat(target, large_write);
        }
        for number in 0..SSH_CLIENTS {
            flood.jumps(target, number)?;
        }
        Ok(flood)
    }

    /// Repeats the attack each time the host has ended it.
    fn repeat<F>(&mut self, target: &Target, act: impl Fn(Target) -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send,
    {
        let target = target.clone();
        self.tasks.spawn(async move {
            loop {
                let _ = act(target.clone()).await;
                sleep(Duration::from_millis(500)).await;
            }
        });
    }

    /// Runs OpenSSH's client with a SOCKS port through the gateway, and connections to it.
    fn jumps(&mut self, target: &Target, number: usize) -> Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        drop(listener);
        let child = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-N"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=QUIET", "-D", &format!("127.0.0.1:{port}"), "-i"])
            .arg(&target.key)
            .args(["-p", &target.ssh.port().to_string(), "you@127.0.0.1"])
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("ssh client {number}"))?;
        self.ssh.push(child);
        for _ in 0..JUMPS {
            self.repeat(target, move |target| jump(target, port));
        }
        Ok(())
    }
}

async fn send(target: &Target, line: &str, more: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target.api).await?;
    let token = &target.who.token;
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// Sends while data is accepted; then waits for the host to end the connection.
async fn push(mut stream: TcpStream) -> Result<()> {
    while let Ok(sent) = timeout(Duration::from_secs(5), stream.write_all(ZEROES)).await {
        sent?;
    }
    ended(stream).await
}

async fn ended(stream: TcpStream) -> Result<()> {
    loop {
        sleep(Duration::from_millis(200)).await;
        if stream.try_write(&[0]).is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock) {
            return Ok(());
        }
    }
}

/// Returns the head of a masked WebSocket message; its mask is zero, so its bytes are unchanged.
fn message(bytes: u64) -> Vec<u8> {
    let mut head = vec![0x82, 0xff];
    head.extend_from_slice(&bytes.to_be_bytes());
    head.extend_from_slice(&[0; 4]);
    head
}

/// Opens many connections by one socket to a service that reads nothing, or one message that never
/// ends.
async fn forward(target: Target, whole: bool) -> Result<()> {
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let line = format!("GET /ws/forward/{}/80?proto=tcp", target.task);
    let mut stream = send(&target, &line, upgrade).await?;
    stream.read_exact(&mut [0; 12]).await?;
    if !whole {
        stream.write_all(&message(1024 * 1024)).await?;
        stream.write_all(&ZEROES[..1024 * 1024 - 1]).await?;
        return idle(stream).await;
    }
    for client in 0..CONNECTIONS {
        stream.write_all(&message(8)).await?;
        stream.write_all(&[1, 0]).await?;
        stream.write_all(&client.to_be_bytes()).await?;
        stream.write_all(&[0, 0]).await?;
    }
    loop {
        for client in 0..CONNECTIONS {
            let sending = async {
                stream.write_all(&message(512 * 1024)).await?;
                stream.write_all(&[3, 0]).await?;
                stream.write_all(&client.to_be_bytes()).await?;
                stream.write_all(&[0, 0]).await?;
                stream.write_all(&ZEROES[..512 * 1024 - 8]).await
            };
            timeout(Duration::from_secs(60), sending).await??;
        }
    }
}

/// Reads nothing, and notices an end only by its own failed writes.
async fn idle(stream: TcpStream) -> Result<()> {
    stream.readable().await?;
    sleep(Duration::from_secs(20)).await;
    Ok(())
}

async fn stream(target: Target) -> Result<()> {
    let upgrade = "Connection: upgrade\r\nUpgrade: kohakuriver-stream\r\n";
    let line = format!("GET /api/vps/{}/stream?target=tcp&port=80", target.task);
    push(send(&target, &line, upgrade).await?).await
}

async fn slow_log_in(target: Target) -> Result<()> {
    let mut stream = TcpStream::connect(target.api).await?;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn unread(target: Target, path: &str) -> Result<()> {
    let line = format!("GET /api/fs/{}/{path}", target.task);
    idle(send(&target, &line, "").await?).await
}

async fn large_write(target: Target) -> Result<()> {
    let length = 60 * 1024 * 1024;
    let line = format!("POST /api/fs/{}/write", target.task);
    let mut stream = send(&target, &line, &format!("Content-Length: {length}\r\n")).await?;
    let begin = br#"{"path":"/x","content":""#;
    let mut sent = begin.len();
    stream.write_all(begin).await?;
    while sent + ESCAPES.len() + 2 < length {
        stream.write_all(ESCAPES).await?;
        sent += ESCAPES.len();
    }
    stream.write_all(&vec![b' '; length - sent - 2]).await?;
    stream.write_all(br#""}"#).await?;
    idle(stream).await
}

async fn jump(target: Target, port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[5, 1, 0]).await?;
    stream.read_exact(&mut [0; 2]).await?;
    let name = target.task.as_bytes();
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len())?];
    request.extend_from_slice(name);
    request.extend_from_slice(&[0, 22]);
    stream.write_all(&request).await?;
    push(stream).await
}
