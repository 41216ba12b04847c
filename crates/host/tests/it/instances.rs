//! Creates and changes VPSes.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_model::{FailureCode, InstanceId, Observation, Observed};
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

#[tokio::test]
async fn vps_runs_once_reported_and_has_compatible_fields() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let answer = host
        .post("/api/vps/create", json!({"name": "web", "required_cores": 2, "dashboard_extra": 1}))
        .await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text("status"), "running");
    assert_eq!(answer.body["assigned_node"]["hostname"], "n1");
    assert_eq!(answer.body["ssh_port"], 0, "created without SSH");
    let list = host.get("/api/vps").await?;
    assert_eq!(list.body[0]["task_id"], answer.text("task_id"));
    assert_eq!(host.get("/api/nodes/n1").await?.body["available_cores"], 6);
    Ok(())
}

#[tokio::test]
async fn failed_create_reports_reason_and_leaves_nothing() -> Result<()> {
    let host = TestHost::start().await?;
    let state = Observed::Failed {
        code: FailureCode::ImageNotFound,
        message: "no such image".into(),
        hint: Some("check the name".into()),
    };
    let _runner = FakeRunner::join(&host, "n1", Reaction::Fail(state)).await?;
    let answer = host.post("/api/vps/create", json!({"registry_image": "nope"})).await?;
    assert_eq!((answer.status, answer.text("code")), (502, "image_not_found"));
    assert_eq!(answer.text("hint"), "check the name");
    for _ in 0..6000 {
        if host.get("/api/vps").await?.body == json!([]) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the row stayed");
}

#[tokio::test]
async fn stop_restart_and_delete_are_idempotent() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({"name": "web"})).await?;
    assert_eq!(created.status, 200);
    let refused = host.delete("/api/vps/web").await?;
    assert_eq!((refused.status, refused.text("code")), (409, "wrong_state"));
    assert!(refused.text("hint").contains("stop"), "{refused:?}");
    for _ in 0..2 {
        assert_eq!(host.post("/api/vps/stop/web", json!({})).await?.status, 202);
        host.wait_for("web", "stopped").await?;
    }
    assert_eq!(host.post("/api/vps/restart/web", json!({})).await?.status, 202);
    host.wait_for("web", "running").await?;
    assert_eq!(host.post("/api/vps/web/stop", json!({})).await?.status, 202);
    host.wait_for("web", "stopped").await?;
    assert_eq!(host.delete("/api/vps/web").await?.status, 202);
    for _ in 0..6000 {
        if host.get("/api/status/web").await?.status == 404 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the row stayed");
}

#[tokio::test]
async fn command_for_offline_runner_arrives_on_reconnect() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({"name": "web"})).await?;
    let identity = runner.disconnect().await;
    assert_eq!(host.post("/api/vps/stop/web", json!({})).await?.status, 202);
    let status = host.get("/api/status/web").await?;
    assert_eq!((status.text("status"), status.text("transition")), ("running", "stopping"));

    let host = host.restart().await?;
    let runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
    host.wait_for("web", "stopped").await?;
    let order = runner.order(id(created.text("task_id"))).unwrap();
    assert_eq!(order.intent.generation, 2);
    Ok(())
}

#[tokio::test]
async fn instances_of_silent_node_are_lost_until_it_reports() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({"name": "web"})).await?;
    let identity = runner.disconnect().await;
    host.wait_for("web", "running").await?;
    host.advance(Duration::from_secs(31));
    host.wait_for("web", "lost").await?;

    let seen = Observation {
        generation: 1,
        state: Observed::Stopped { exit_code: Some(3), finished_at_ms: 7, oom: false },
        ssh_host_key: None,
        warning: None,
        address: None,
    };
    let seen = vec![(id(created.text("task_id")), seen)];
    let _runner = FakeRunner::connect(&host, identity, Reaction::Ignore, seen).await?;
    let task = host.wait_for("web", "failed").await?;
    assert_eq!(task["exit_code"], 3, "{task}");
    Ok(())
}

#[tokio::test]
async fn progress_is_reported_and_wakes_waiters() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Ignore).await?;
    let created = host.post("/api/vps/create?wait=false", json!({})).await?;
    assert_eq!(created.text("status"), "assigning");
    let task = created.text("task_id");
    let step = Observed::Provisioning { step: "pulling debian:12".into(), percent: Some(40) };
    runner.report(id(task), 1, step).await?;
    let since = created.body["task"]["revision"].as_u64().unwrap();
    let seen = host.get(&format!("/api/status/{task}?since={since}&timeout=10")).await?;
    assert_eq!((seen.text("progress"), seen.text("status")), ("pulling debian:12", "assigning"));
    assert_eq!(seen.body["progress_percent"], 40);
    Ok(())
}

#[tokio::test]
async fn invalid_requests_name_the_invalid_field() -> Result<()> {
    let host = TestHost::start().await?;
    let nobody = host.post("/api/vps/create", json!({})).await?;
    assert_eq!((nobody.status, nobody.text("code")), (503, "no_nodes"));
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let cases = [
        (json!({"target_hostname": "n9"}), 404, "unknown_node"),
        (json!({"required_cores": 9}), 503, "no_room"),
        (json!({"required_gpus": [0, 0], "target_hostname": "n1"}), 422, "invalid"),
        (json!({"required_gpus": [5], "target_hostname": "n1"}), 503, "no_room"),
        (json!({"gpu_count": 1, "required_gpus": [0]}), 422, "invalid"),
        (json!({"target_numa_node_id": 0}), 422, "invalid"),
        (json!({"target_numa_node_id": 7, "target_hostname": "n1"}), 503, "no_room"),
        (json!({"node_labels": {"disk": "fast"}}), 503, "node_unavailable"),
        (json!({"from_snapshot": "x"}), 422, "invalid"),
        (json!({"from_vps": "nobody"}), 404, "not_found"),
        (json!({"on_oom": "cry"}), 422, "invalid"),
        (json!({"required_cores": -1}), 422, "invalid"),
        (json!({"required_memory_bytes": 17u64 << 30}), 503, "no_room"),
        (json!({"registry_image": "a", "container_name": "b"}), 422, "invalid"),
        (json!({"container_name": "../x"}), 422, "invalid"),
        (json!({"name": "UPPER"}), 422, "invalid"),
        (json!({"required_cores": "many"}), 422, "invalid_body"),
        (json!("text"), 422, "invalid_body"),
    ];
    for (body, status, code) in cases {
        let answer = host.post("/api/vps/create", body.clone()).await?;
        assert_eq!((answer.status, answer.text("code")), (status, code), "{body} {answer:?}");
    }
    assert_eq!(host.get("/api/vps").await?.body, json!([]), "nothing was half made");
    assert_eq!(host.get("/api/status/nope").await?.text("code"), "not_found");
    assert_eq!(host.get("/nope").await?.text("code"), "unknown_route");
    assert_eq!(host.get("/api/vps/?x=1").await?.body, json!([]), "a slash leads to the same");
    Ok(())
}

#[tokio::test]
async fn generated_private_key_is_returned_once() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({"ssh_key_mode": "generate"})).await?;
    assert!(created.text("ssh_private_key").starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
    assert_eq!(created.body["ssh_port"], 9000);
    let order = runner.order(id(created.text("task_id"))).unwrap();
    assert_eq!(order.spec.ssh.unwrap().authorized_keys, [created.text("ssh_public_key")]);
    let again = host.get(&format!("/api/status/{}", created.text("task_id"))).await?;
    assert!(!again.body.to_string().contains("PRIVATE KEY"));
    Ok(())
}

#[tokio::test]
async fn cross_site_page_is_refused() -> Result<()> {
    let host = TestHost::start().await?;
    let rebound = host.get_with("/api/vps", "host", "evil.example").await?;
    assert_eq!((rebound.status, rebound.text("code")), (403, "foreign_origin"));
    let page = host.get_with("/api/vps", "origin", "http://evil.example").await?;
    assert_eq!(page.status, 403);
    Ok(())
}
