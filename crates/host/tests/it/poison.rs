//! Oversized data affects its own VPS and never the node: from users, from an old database, from
//! the node itself.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_model::{FailureCode, InstanceId, Observed};
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::{Value, json};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

/// Returns a key that no other number has.
fn key(number: u64) -> String {
    let point = [&[7u8; 24][..], &number.to_be_bytes()].concat();
    let mut blob = Vec::new();
    for part in [&b"ssh-ed25519"[..], &point] {
        blob.extend((part.len() as u32).to_be_bytes());
        blob.extend(part);
    }
    format!("ssh-ed25519 {}", data_encoding::BASE64.encode(&blob))
}

async fn create(host: &TestHost, name: &str) -> Result<InstanceId> {
    let body = json!({"name": name, "ssh_key_mode": "upload", "ssh_public_key": KEY});
    let created = host.post("/api/vps/create", body).await?;
    assert_eq!(created.status, 200, "{created:?}");
    Ok(created.text("task_id").parse()?)
}

/// Polls until the node is in this state. Bounded.
async fn wait_node(host: &TestHost, name: &str, status: &str) -> Result<()> {
    for _ in 0..500 {
        if host.get(&format!("/api/nodes/{name}")).await?.text("status") == status {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("{name} is not {status}")
}

#[tokio::test]
async fn huge_key_comments_leave_node_connected() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let task = create(&host, "web").await?;
    for number in 0..25 {
        let line = format!("{} {}", key(number), "x".repeat(60_000));
        let answer = host.patch("/api/vps/web", json!({"add_ssh_keys": line})).await?;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    for _ in 0..500 {
        let ordered = runner.order(task).and_then(|order| order.spec.ssh);
        if ordered.is_some_and(|ssh| ssh.authorized_keys.len() == 26) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ssh = runner.order(task).and_then(|order| order.spec.ssh).unwrap();
    assert_eq!(ssh.authorized_keys.len(), 26);
    assert!(ssh.authorized_keys.iter().all(|line| line.len() < 200));
    assert!(!runner.is_disconnected());
    Ok(())
}

#[tokio::test]
async fn oversized_vps_of_old_database_affects_itself_only() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let (bad, good) = (create(&host, "bad").await?, create(&host, "good").await?);
    host.wait_for("bad", "running").await?;
    host.wait_for("good", "running").await?;
    let identity = runner.disconnect().await;
    wait_node(&host, "n1", "offline").await?;
    // As an early version would have stored it.
    let huge: Vec<String> = (0..400).map(|n| format!("ssh-rsa {}{n}", "A".repeat(3000))).collect();
    let huge = serde_json::to_string(&[vec![KEY.to_owned()], huge].concat())?;
    host.set_in_spec(&bad.to_string(), "$.ssh.authorized_keys", &huge).await?;

    let runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
    wait_node(&host, "n1", "online").await?;
    host.wait_for("good", "running").await?;
    assert_eq!(host.post("/api/vps/stop/good", json!({})).await?.status, 202);
    host.wait_for("good", "stopped").await?;
    assert!(runner.order(good).is_some());
    assert!(runner.order(bad).is_none(), "it was sent");
    let shown = host.get("/api/status/bad").await?;
    assert_eq!(shown.text("error_code"), "too_large", "{shown:?}");
    assert!(shown.text("error_hint").contains("keys remove"), "{shown:?}");
    // It can be reduced, and then works; and it can be ended as it is.
    let update = host.patch("/api/vps/bad", json!({"required_cores": 1})).await?;
    assert_eq!(update.status, 202, "{update:?}");
    let remove = host.patch("/api/vps/bad", json!({"remove_ssh_keys": [KEY]})).await?;
    assert_eq!(remove.status, 202, "{remove:?}");
    assert_eq!(host.delete("/api/vps/bad?force=true").await?.status, 202);
    host.wait_gone("bad").await?;
    assert!(!runner.is_disconnected());
    Ok(())
}

#[tokio::test]
async fn node_reports_are_bounded_and_stored_once() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let task = create(&host, "web").await?;
    host.wait_for("web", "running").await?;
    let failed = |n: usize| Observed::Failed {
        code: FailureCode::Internal,
        message: format!("{n}\u{1b}[2J{}", "m".repeat(900_000)),
        hint: Some("h".repeat(50_000)),
    };
    for _ in 0..5 {
        runner.report(task, 1, failed(1)).await?;
    }
    runner.report(task, 1, failed(2)).await?;
    let mut events = Value::Null;
    for _ in 0..500 {
        events = host.get("/api/vps/web/events").await?.body;
        let failures = events.as_array().unwrap().iter().filter(|one| one["kind"] == "failed");
        if failures.count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let failures: Vec<_> =
        events.as_array().unwrap().iter().filter(|one| one["kind"] == "failed").collect();
    assert_eq!(failures.len(), 2, "equal reports are one event");
    for failure in failures {
        let detail = failure["detail"].as_str().unwrap();
        assert!(detail.len() <= 8 * 1024 && !detail.contains('\u{1b}'), "{}", detail.len());
    }
    let shown = host.get("/api/status/web").await?;
    assert!(shown.text("error_message").len() <= 8 * 1024);
    assert!(shown.text("error_hint").len() <= 2 * 1024);
    Ok(())
}

#[tokio::test]
async fn deletes_for_offline_node_are_recorded_and_reported() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    create(&host, "web").await?;
    create(&host, "old").await?;
    host.wait_for("web", "running").await?;
    host.wait_for("old", "running").await?;
    let identity = runner.disconnect().await;
    wait_node(&host, "n1", "offline").await?;
    host.advance(Duration::from_secs(60));
    host.wait_for("web", "lost").await?;
    let stop = host.post("/api/vps/stop/old", json!({})).await?;
    assert_eq!(stop.status, 202, "{stop:?}");
    assert!(stop.text("message").contains("node 'n1' is offline"), "{stop:?}");
    for _ in 0..2 {
        let answer = host.delete("/api/vps/web?force=true").await?;
        assert_eq!(answer.status, 202, "{answer:?}");
        let message = answer.text("message");
        assert!(message.contains("once node 'n1' is back"), "{message}");
        assert!(message.contains("kohakuriver node remove n1"), "{message}");
    }
    // An instance under deletion can be reduced too.
    let remove = host.patch("/api/vps/web", json!({"remove_ssh_keys": [KEY]})).await?;
    assert_eq!(remove.status, 202, "{remove:?}");
    let other = host.patch("/api/vps/web", json!({"required_cores": 1})).await?;
    assert_eq!((other.status, other.text("code")), (409, "deleting"));
    let _runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
    host.wait_gone("web").await?;
    host.wait_for("old", "stopped").await?;
    Ok(())
}

#[tokio::test]
async fn long_comments_of_registered_keys_leave_node_connected() -> Result<()> {
    let host = TestHost::start_with(|config| config.auth.enabled = true).await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let owner = host.person("owner", "operator").await?;
    let body = json!({"name": "web", "ssh_key_mode": "none"});
    let created = host.post_as(&owner, "/api/vps/create", body).await?;
    assert_eq!(created.status, 200, "{created:?}");
    let task: InstanceId = created.text("task_id").parse()?;
    for number in 0..50 {
        let line = format!("{} {}", key(number), "x".repeat(15_000));
        let answer = host.post_as(&owner, "/api/auth/keys", json!({"key": line})).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text("line").len() < 200, "{answer:?}");
    }
    let mut told = Vec::new();
    for _ in 0..500 {
        let ordered = runner.order(task).and_then(|order| order.spec.ssh);
        told = ordered.map(|ssh| ssh.people_keys).unwrap_or_default();
        if told.len() == 50 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told.len(), 50);
    assert!(!runner.is_disconnected());
    Ok(())
}
