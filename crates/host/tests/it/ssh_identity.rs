//! Certificates, registered keys and revocation, with the real `ssh` at the gateway.
//!
//! The runner is a fake: `ssh -W` receives its greeting through the gateway, and then whatever it
//! sends itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kohakuriver_host::HttpsMode;
use kohakuriver_model::{InstanceId, SshAccess, UserId};
use kohakuriver_testkit::{Answer, FakeRunner, Person, Reaction, TestHost};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// The promise is five seconds; the rest is for a busy computer.
const CUT_WITHIN: Duration = Duration::from_secs(30);

/// A host with login, Alice and Bob, and a VPS of the owner's that Alice may use.
struct Lab {
    host: TestHost,
    runner: FakeRunner,
    owner: Person,
    alice: Person,
    bob: Person,
    id: String,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Result<Self> {
        // With TLS it has the real time, as ssh and the library have.
        let host = TestHost::start_with(|config| {
            config.auth.enabled = true;
            config.https = HttpsMode::OwnCa;
        })
        .await?;
        let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
        let owner = host.person("owner", "operator").await?;
        let alice = host.person("alice", "user").await?;
        let bob = host.person("bob", "user").await?;
        let id = create(&host, &owner, "web").await?;
        let dir = tempfile::tempdir()?;
        let lab = Self { host, runner, owner, alice, bob, id, dir };
        lab.share("alice", "use").await?;
        Ok(lab)
    }

    async fn share(&self, user: &str, level: &str) -> Result<()> {
        let path = format!("/api/vps/{}/shares", self.id);
        let share = json!({"user": user, "level": level});
        let answer = self.host.ask(Some(&self.owner), "PUT", &path, Some(&share)).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    async fn unshare(&self, user: &str) -> Result<()> {
        let path = format!("/api/vps/{}/shares?user={user}", self.id);
        let answer = self.host.ask(Some(&self.owner), "DELETE", &path, None).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    /// Creates a key pair. Returns its private half's path and its public line.
    async fn key(&self, name: &str) -> Result<(PathBuf, String)> {
        let path = self.dir.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(&path)
            .status();
        anyhow::ensure!(made.await?.success());
        let line = std::fs::read_to_string(path.with_extension("pub"))?;
        Ok((path, line.trim().to_owned()))
    }

    async fn register(&self, who: &Person, line: &str) -> Result<i64> {
        let answer = self.host.post_as(who, "/api/auth/keys", json!({"key": line})).await?;
        answer.body["id"].as_i64().with_context(|| format!("{answer:?}"))
    }

    async fn certificate(&self, who: &Person, line: &str) -> Result<Answer> {
        let path = format!("/api/vps/{}/ssh-cert", self.id);
        self.host.post_as(who, &path, json!({"public_key": line})).await
    }

    /// Returns the SSH specification that the runner last received.
    fn told(&self) -> SshAccess {
        let id: InstanceId = self.id.parse().unwrap();
        self.runner.order(id).unwrap().spec.ssh.unwrap()
    }

    async fn wait_told(&self, keys: &[&str]) -> Result<()> {
        let deadline = Instant::now() + CUT_WITHIN;
        while self.told().people_keys != keys {
            anyhow::ensure!(Instant::now() < deadline, "told {:?}, not {keys:?}", self.told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn jump(&self, key: &Path, target: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "LogLevel=ERROR", "-i"])
            .arg(key)
            .args(["-W", &format!("{target}:22"), "-p"])
            .arg(self.host.host.ssh_address().port().to_string())
            .arg("whoever@127.0.0.1")
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        ssh
    }

    /// Opens a connection through the gateway, and returns it once it is established.
    async fn open(&self, key: &Path) -> Result<Standing> {
        let mut child = self.jump(key, "web.owner").spawn()?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.as_mut().context("it is piped")?);
        tokio::time::timeout(CUT_WITHIN, output.read_line(&mut line)).await??;
        anyhow::ensure!(line == format!("hello from {}\n", self.id), "{line:?}");
        let input = child.stdin.take();
        Ok(Standing { child, _input: input })
    }

    async fn refused(&self, key: &Path, target: &str) -> Result<String> {
        let mut child = self.jump(key, target).spawn()?;
        let mut said = String::new();
        let mut errors = child.stderr.take().context("it is piped")?;
        tokio::time::timeout(CUT_WITHIN, errors.read_to_string(&mut said)).await??;
        anyhow::ensure!(!child.wait().await?.success(), "{said}");
        Ok(said)
    }
}

async fn create(host: &TestHost, who: &Person, name: &str) -> Result<String> {
    let wish = json!({"name": name, "ssh_key_mode": "none"});
    let made = host.post_as(who, "/api/vps/create", wish).await?;
    anyhow::ensure!(made.status == 200, "{made:?}");
    Ok(made.text("task_id").to_owned())
}

/// An open session with its input: waiting for the process alone would close it, and with it the
/// connection.
struct Standing {
    child: Child,
    _input: Option<ChildStdin>,
}

async fn assert_cut(standing: &mut Standing) -> Result<()> {
    tokio::time::timeout(CUT_WITHIN, standing.child.wait()).await.context("it was not cut")??;
    Ok(())
}

#[tokio::test]
async fn certificate_is_for_authorized_accounts_and_one_vps() -> Result<()> {
    let lab = Lab::new().await?;
    let (_, line) = lab.key("fresh").await?;
    let answer = lab.certificate(&lab.alice, &line).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text("principal"), format!("vps-{}", lab.id));
    assert!(answer.text("certificate").starts_with("ssh-ed25519-cert-v01@openssh.com "));
    assert_eq!(answer.body.get("warning"), None);
    let trusted = lab.told().trusted_ca.unwrap();
    assert_eq!(trusted.principal, answer.text("principal"));

    assert_eq!(lab.certificate(&lab.bob, &line).await?.status, 404);
    lab.share("bob", "view").await?;
    let seen = lab.certificate(&lab.bob, &line).await?;
    assert_eq!((seen.status, seen.text("code")), (403, "not_yours"));
    for bad in ["", "nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----", &"x".repeat(20_000)] {
        let answer = lab.certificate(&lab.alice, bad).await?;
        assert_eq!((answer.status, answer.text("code")), (422, "bad_key"), "{bad:.20}");
    }
    let stopped = lab.host.post(&format!("/api/vps/stop/{}", lab.id), json!({})).await?;
    assert!(stopped.status < 300, "{stopped:?}");
    lab.host.wait_for(&lab.id, "stopped").await?;
    let answer = lab.certificate(&lab.alice, &line).await?;
    assert_eq!((answer.status, answer.text("code")), (409, "not_running"));
    assert!(answer.text("hint").contains("restart"), "{answer:?}");
    // All of it is recorded.
    let log = lab.host.get("/api/audit?action=ssh.certificate").await?.body.to_string();
    assert!(log.contains("ssh.certificate") && log.contains("alice"), "{log}");
    Ok(())
}

#[tokio::test]
async fn gateway_accepts_certificate_for_its_own_vps_only() -> Result<()> {
    let lab = Lab::new().await?;
    create(&lab.host, &lab.owner, "other").await?;
    let (key, line) = lab.key("fresh").await?;
    assert!(lab.refused(&key, "web.owner").await?.contains("Permission denied"));
    // The owner may enter both; the certificate is for one of them.
    for who in [&lab.owner, &lab.alice] {
        let answer = lab.certificate(who, &line).await?;
        let beside = lab.dir.path().join("fresh-cert.pub");
        std::fs::write(&beside, answer.text("certificate"))?;
        lab.open(&key).await?.child.kill().await?;
        for target in ["other", "nothing"] {
            let said = lab.refused(&key, target).await?;
            assert!(!said.contains("Permission denied"), "{said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn vps_of_old_version_trusts_certificates_on_first_use() -> Result<()> {
    let lab = Lab::new().await?;
    let (key, line) = lab.key("fresh").await?;
    // Nothing else is pending that would notify the node as well.
    let deadline = Instant::now() + CUT_WITHIN;
    while !lab.told().people.unwrap().0.contains(&UserId(lab.alice.id)) {
        anyhow::ensure!(Instant::now() < deadline, "{:?}", lab.told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.host.forget_ssh_ca(&lab.id).await?;
    let id: InstanceId = lab.id.parse()?;
    let before = lab.runner.order(id).context("it was ordered")?.intent.generation;
    let answer = lab.certificate(&lab.alice, &line).await?;
    assert_eq!((answer.status, answer.body.get("warning")), (200, None), "{answer:?}");
    let order = lab.runner.order(id).context("it was ordered")?;
    assert!(order.intent.generation > before, "the node has heard of it");
    assert_eq!(lab.told().trusted_ca.context("it trusts one")?.principal, answer.text("principal"));
    std::fs::write(lab.dir.path().join("fresh-cert.pub"), answer.text("certificate"))?;
    lab.open(&key).await?.child.kill().await?;
    // Once is enough.
    assert_eq!(lab.certificate(&lab.alice, &line).await?.status, 200);
    let again = lab.runner.order(id).context("it was ordered")?.intent.generation;
    assert_eq!(again, order.intent.generation);
    Ok(())
}

#[tokio::test]
async fn expired_certificate_is_refused() -> Result<()> {
    let lab = Lab::new().await?;
    let (key, line) = lab.key("fresh").await?;
    let answer = lab.certificate(&lab.alice, &line).await?;
    std::fs::write(lab.dir.path().join("fresh-cert.pub"), answer.text("certificate"))?;
    let mut standing = lab.open(&key).await?;
    lab.host.advance(Duration::from_secs(301));
    assert!(lab.refused(&key, "web.owner").await?.contains("Permission denied"));
    // Open sessions stay: a certificate grants the login, it does not limit its duration.
    assert!(tokio::time::timeout(Duration::from_secs(3), standing.child.wait()).await.is_err());
    Ok(())
}

#[tokio::test]
async fn vps_gets_registered_keys_of_authorized_accounts() -> Result<()> {
    let lab = Lab::new().await?;
    let (_, alices) = lab.key("alice").await?;
    let (_, bobs) = lab.key("bob").await?;
    let (_, owners) = lab.key("owner").await?;
    let key = lab.register(&lab.alice, &alices).await?;
    lab.wait_told(&[&alices]).await?;
    lab.register(&lab.bob, &bobs).await?;
    lab.share("bob", "view").await?;
    lab.register(&lab.owner, &owners).await?;
    lab.wait_told(&[&alices, &owners]).await?;
    lab.share("bob", "manage").await?;
    lab.wait_told(&[&alices, &bobs, &owners]).await?;
    let may_enter = |lab: &Lab| {
        let people = lab.told().people.unwrap();
        [&lab.alice, &lab.bob, &lab.owner].map(|who| people.0.contains(&UserId(who.id)))
    };
    assert_eq!(may_enter(&lab), [true; 3]);
    lab.unshare("bob").await?;
    lab.wait_told(&[&alices, &owners]).await?;
    assert_eq!(may_enter(&lab), [true, false, true]);
    // By a group, until its group has no share.
    let made = lab.host.post("/api/auth/groups", json!({"name": "lab"})).await?;
    let group = made.body["id"].as_i64().with_context(|| format!("{made:?}"))?;
    let member = format!("/api/auth/groups/{group}/members/{}", lab.bob.id);
    assert_eq!(lab.host.put(&member).await?.status, 200);
    let path = format!("/api/vps/{}/shares", lab.id);
    let share = json!({"group": "lab", "level": "use"});
    let shared = lab.host.ask(Some(&lab.owner), "PUT", &path, Some(&share)).await?;
    assert_eq!(shared.status, 200, "{shared:?}");
    lab.wait_told(&[&alices, &bobs, &owners]).await?;
    assert_eq!(lab.host.delete(&member).await?.status, 200);
    lab.wait_told(&[&alices, &owners]).await?;
    let path = format!("/api/auth/keys/{key}");
    let gone = lab.host.ask(Some(&lab.alice), "DELETE", &path, None).await?;
    assert_eq!(gone.status, 200);
    lab.wait_told(&[&owners]).await?;
    // A later instance has its owner's keys at once, and no update is sent twice.
    let id: InstanceId = create(&lab.host, &lab.owner, "later").await?.parse()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let order = lab.runner.order(id).context("it was ordered")?;
    assert_eq!(order.spec.ssh.context("with SSH")?.people_keys, [owners]);
    assert_eq!(order.intent.generation, 1);
    let events = lab.host.get(&format!("/api/vps/{}/events", lab.id)).await?.body.to_string();
    assert!(events.contains("1 registered key") && events.contains("\"host\""), "{events}");
    Ok(())
}

#[tokio::test]
async fn revocation_closes_gateway_sessions_of_registered_key() -> Result<()> {
    let lab = Lab::new().await?;
    let (key, line) = lab.key("alice").await?;
    let (strange, _) = lab.key("strange").await?;
    assert!(lab.refused(&key, "web.owner").await?.contains("Permission denied"));
    let number = lab.register(&lab.alice, &line).await?;
    assert!(lab.refused(&strange, "web.owner").await?.contains("Permission denied"));

    let mut standing = lab.open(&key).await?;
    lab.unshare("alice").await?;
    assert_cut(&mut standing).await?;
    lab.refused(&key, "web.owner").await?;

    lab.share("alice", "use").await?;
    let mut standing = lab.open(&key).await?;
    let path = format!("/api/auth/keys/{number}");
    let gone = lab.host.ask(Some(&lab.alice), "DELETE", &path, None).await?;
    assert_eq!(gone.status, 200, "{gone:?}");
    assert_cut(&mut standing).await?;
    assert!(lab.refused(&key, "web.owner").await?.contains("Permission denied"));

    // Two sessions, by a registered key and by a certificate, when the account is disabled.
    lab.register(&lab.alice, &line).await?;
    let (fresh, fresh_line) = lab.key("fresh").await?;
    let answer = lab.certificate(&lab.alice, &fresh_line).await?;
    std::fs::write(lab.dir.path().join("fresh-cert.pub"), answer.text("certificate"))?;
    let mut standing = [lab.open(&key).await?, lab.open(&fresh).await?];
    let path = format!("/api/auth/users/{}", lab.alice.id);
    let disabled = lab.host.patch(&path, json!({"is_active": false})).await?;
    assert_eq!(disabled.status, 200, "{disabled:?}");
    for child in &mut standing {
        assert_cut(child).await?;
    }
    for key in [&key, &fresh] {
        assert!(lab.refused(key, "web.owner").await?.contains("Permission denied"));
    }
    Ok(())
}

#[tokio::test]
async fn jump_without_channel_ends_with_its_key() -> Result<()> {
    let lab = Lab::new().await?;
    let (key, line) = lab.key("alice").await?;
    let number = lab.register(&lab.alice, &line).await?;
    let socket = lab.dir.path().join("control");
    let control = format!("ControlPath={}", socket.display());
    let mut master = Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-N", "-M"])
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", &control, "-i"])
        .arg(&key)
        .args(["-p", &lab.host.host.ssh_address().port().to_string(), "you@127.0.0.1"])
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    // The socket exists when the client is logged in.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        anyhow::ensure!(Instant::now() < deadline, "it did not log in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let path = format!("/api/auth/keys/{number}");
    assert_eq!(lab.host.ask(Some(&lab.alice), "DELETE", &path, None).await?.status, 200);
    tokio::time::timeout(CUT_WITHIN, master.wait()).await.context("it was not cut")??;
    Ok(())
}

#[tokio::test]
async fn certificates_work_without_accounts_and_keys_do_not() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let made = host.post("/api/vps/create", json!({"name": "web", "ssh_key_mode": "none"})).await?;
    let id: InstanceId = made.text("task_id").parse()?;
    let key =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a@b";
    let answer = host.post("/api/vps/web/ssh-cert", json!({"public_key": key})).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = runner.order(id).context("it was ordered")?;
    assert_eq!(told.intent.generation, 1, "it was told when it was made");
    let access = told.spec.ssh.context("with SSH")?;
    assert_eq!((access.people_keys, access.people), (Vec::new(), None));
    let plain = host.post("/api/vps/create", json!({"name": "plain"})).await?;
    assert_eq!(plain.status, 200, "{plain:?}");
    let answer = host.post("/api/vps/plain/ssh-cert", json!({"public_key": key})).await?;
    assert_eq!((answer.status, answer.text("code")), (409, "no_ssh"));
    Ok(())
}
