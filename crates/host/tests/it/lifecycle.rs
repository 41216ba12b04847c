//! Every transition of the documented diagram through the API, and those that must be refused.

use std::time::Duration;

use anyhow::Result;
use kohakuriver_model::{InstanceId, Observed};
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::{Value, json};

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

async fn with_web() -> Result<(TestHost, FakeRunner, InstanceId)> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created = host.post("/api/vps/create", json!({"name": "web", "required_cores": 2})).await?;
    let task = id(created.text("task_id"));
    Ok((host, runner, task))
}

async fn kinds(host: &TestHost, task: &str) -> Result<Vec<String>> {
    let events = host.get(&format!("/api/vps/{task}/events")).await?.body;
    let kind = |event: &Value| event["kind"].as_str().unwrap_or_default().to_owned();
    Ok(events.as_array().unwrap().iter().map(kind).collect())
}

#[tokio::test]
async fn pause_keeps_resources_and_kill_releases_them() -> Result<()> {
    let (host, _runner, _) = with_web().await?;
    let free = async || host.get("/api/nodes/n1").await.unwrap().body["available_cores"].clone();
    assert_eq!(host.post("/api/vps/pause/web", json!({})).await?.status, 202);
    let paused = host.wait_for("web", "paused").await?;
    assert_eq!((&paused["desired"], free().await), (&json!("paused"), json!(6)));
    // Repeating is harmless; an impossible act is refused with the possible ones.
    assert_eq!(host.post("/api/vps/pause/web", json!({})).await?.status, 202);
    let answer = host.post("/api/command/web/resume", json!({})).await?;
    assert_eq!(answer.status, 200);
    assert!(answer.text("message").contains("successfully"), "{answer:?}");
    host.wait_for("web", "running").await?;
    assert_eq!(host.post("/api/kill/web", json!({})).await?.status, 202);
    host.wait_for("web", "killed").await?;
    assert_eq!(free().await, json!(8));
    let refused = host.post("/api/vps/pause/web", json!({})).await?;
    assert_eq!((refused.status, refused.text("code")), (409, "wrong_state"));
    assert!(refused.text("detail").contains("is killed: cannot pause"), "{refused:?}");
    assert_eq!(refused.text("hint"), "possible now: restart, delete");
    assert_eq!(host.post("/api/command/web/restart", json!({})).await?.status, 400);
    assert_eq!(host.post("/api/vps/restart/web", json!({})).await?.status, 202);
    host.wait_for("web", "running").await?;
    let expected = [
        "create", "running", "pause", "paused", "resume", "running", "kill", "stopped", "restart",
        "running",
    ];
    assert_eq!(kinds(&host, "web").await?, expected);
    Ok(())
}

#[tokio::test]
async fn unrequested_end_reports_its_cause() -> Result<()> {
    let (host, runner, task) = with_web().await?;
    let ended = |oom| Observed::Stopped { exit_code: Some(137), finished_at_ms: 5, oom };
    runner.report(task, 1, ended(true)).await?;
    let seen = host.wait_for("web", "killed_oom").await?;
    assert_eq!(seen["error_code"], "out_of_memory", "{seen}");
    let said = seen["error_message"].as_str().unwrap();
    assert!(said.ends_with("and the kernel killed one of its processes"), "{said}");
    assert_eq!(host.post("/api/vps/restart/web", json!({})).await?.status, 202);
    host.wait_for("web", "running").await?;
    runner.report(task, 2, ended(false)).await?;
    let seen = host.wait_for("web", "failed").await?;
    assert!(seen["error_message"].as_str().unwrap().contains("exit code 137"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn resize_is_atomic_and_reports_what_would_fit() -> Result<()> {
    let (host, runner, task) = with_web().await?;
    let update = async |body| host.patch("/api/vps/web", body).await.unwrap();
    assert_eq!(update(json!({"required_cores": 5})).await.status, 202);
    assert_eq!(host.get("/api/nodes/n1").await?.body["available_cores"], 3);
    assert_eq!(runner.order(task).unwrap().spec.cores, 5);
    let refused = update(json!({"required_cores": 9})).await;
    assert_eq!((refused.status, refused.text("code")), (503, "no_room"));
    assert_eq!(refused.text("hint"), "-c 8 would fit there");
    assert_eq!(update(json!({})).await.status, 422);
    assert_eq!(update(json!({"pids_limit": 1})).await.status, 422);
    let seen = host.wait_for("web", "running").await?;
    assert_eq!((&seen["required_cores"], &seen["keep_snapshots"]), (&json!(5), &json!(5)));
    Ok(())
}

#[tokio::test]
async fn gpus_are_allocated_by_uuid_once_and_released() -> Result<()> {
    let (host, runner, _) = with_web().await?;
    let create = async |body| host.post("/api/vps/create", body).await.unwrap();
    let one = create(json!({"name": "one", "target_hostname": "n1", "required_gpus": [1]})).await;
    assert_eq!(one.body["task"]["gpu_uuids"], json!(["GPU-1"]));
    let order = runner.order(id(one.text("task_id"))).unwrap();
    assert_eq!(order.spec.gpus[0].uuid, "GPU-1");
    let taken = create(json!({"target_hostname": "n1", "required_gpus": [1]})).await;
    assert_eq!(taken.status, 503);
    assert!(taken.text("detail").contains("taken by VPS 'one'"), "{taken:?}");
    let two = create(json!({"name": "two", "gpu_count": 1})).await;
    assert_eq!(two.body["task"]["required_gpus"], json!([0]));
    let gpus = host.get("/api/nodes/n1").await?.body["gpu_info"].clone();
    assert_eq!((&gpus[0]["taken"], &gpus[1]["taken"]), (&json!(true), &json!(true)));

    assert_eq!(host.post("/api/vps/stop/one", json!({})).await?.status, 202);
    host.wait_for("one", "stopped").await?;
    let three = create(json!({"name": "three", "gpu_count": 1})).await;
    assert_eq!(three.body["task"]["required_gpus"], json!([1]));
    // Its own card is allocated to another now, and it cannot have a different one.
    let refused = host.post("/api/vps/restart/one", json!({})).await?;
    assert!(refused.text("detail").contains("taken by VPS 'three'"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn numa_target_pins_and_has_its_own_account() -> Result<()> {
    let (host, runner, _) = with_web().await?;
    let body =
        |cores| json!({"target_hostname": "n1", "target_numa_node_id": 1, "required_cores": cores});
    let pinned = host.post("/api/vps/create", body(3)).await?;
    let spec = runner.order(id(pinned.text("task_id"))).unwrap().spec;
    assert_eq!(spec.numa.unwrap().cpus, [4, 5, 6, 7]);
    let refused = host.post("/api/vps/create", body(2)).await?;
    assert!(refused.text("detail").contains("NUMA node 1 of node 'n1' has 1 of 4"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn snapshots_work_and_copies_run_on_their_node() -> Result<()> {
    let (host, runner, task) = with_web().await?;
    let path = "/api/vps/snapshots/web";
    assert_eq!(host.get(path).await?.body["count"], 0);
    assert_eq!(host.get(&format!("{path}/latest")).await?.text("code"), "no_snapshot");
    let made = host.post(&format!("{path}?message=before&name=good"), json!({})).await?;
    assert_eq!((made.status, made.text("tag")), (200, "100"));
    assert_eq!(host.post(&format!("{path}?name=Bad%20Name"), json!({})).await?.status, 422);
    assert_eq!(host.post(path, json!({})).await?.text("tag"), "101");
    let list = host.get(path).await?.body;
    assert_eq!((&list["count"], &list["task_id"]), (&json!(2), &json!(task.as_u64())));
    assert_eq!(list["snapshots"][1]["name"], "good");

    let restored = host.post(&format!("{path}/good/restore"), json!({})).await?;
    assert_eq!(restored.status, 202, "{restored:?}");
    host.wait_for("web", "running").await?;
    let order = runner.order(task).unwrap();
    assert_eq!(order.spec.snapshot.unwrap().tag, 100);
    assert_eq!(order.intent.disk_generation, order.intent.generation);
    let restart = host.post("/api/vps/restart/web?from_snapshot=latest", json!({})).await?;
    assert_eq!(restart.status, 202);
    assert_eq!(runner.order(task).unwrap().spec.snapshot.unwrap().tag, 101);
    let nope = host.post("/api/vps/restart/web?from_snapshot=nope", json!({})).await?;
    assert_eq!((nope.status, nope.text("code")), (404, "no_snapshot"));

    let clone =
        host.post("/api/vps/create", json!({"from_vps": "web", "from_snapshot": "good"})).await?;
    assert_eq!(clone.body["task"]["from_snapshot"], format!("{task}:100"));
    assert_eq!(host.delete(&format!("{path}/100")).await?.status, 200);
    assert_eq!(host.delete(path).await?.body["deleted_count"], 1);
    let events = kinds(&host, "web").await?;
    assert_eq!(events.iter().filter(|kind| kind.starts_with("snapshot")).count(), 4);

    let _identity = runner.disconnect().await;
    let away = host.get(path).await?;
    assert_eq!((away.status, away.text("code")), (503, "node_away"));
    Ok(())
}

#[tokio::test]
async fn ambiguous_snapshot_name_requires_tag() -> Result<()> {
    let (host, _runner, _) = with_web().await?;
    let path = "/api/vps/snapshots/web";
    // The fake runner lets names repeat, as older ones did.
    for tag in ["100", "101"] {
        let made = host.post(&format!("{path}?name=dup"), json!({})).await?;
        assert_eq!((made.status, made.text("tag")), (200, tag));
    }
    let restore = host.post(&format!("{path}/dup/restore"), json!({})).await?;
    let delete = host.delete(&format!("{path}/dup")).await?;
    let copy = json!({"from_vps": "web", "from_snapshot": "dup"});
    for refused in [restore, delete, host.post("/api/vps/create", copy).await?] {
        assert_eq!((refused.status, refused.text("code")), (409, "ambiguous"), "{refused:?}");
        assert_eq!(refused.text("hint"), "name it by its tag: 101, 100");
    }
    assert_eq!(host.delete(&format!("{path}/100")).await?.status, 200);
    assert_eq!(host.post(&format!("{path}/dup/restore"), json!({})).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn drained_node_gets_nothing_new_and_labels_select() -> Result<()> {
    let (host, _runner, _) = with_web().await?;
    let labels = json!({"labels": {"gpu": "a100", "room": "2"}});
    assert_eq!(host.patch("/api/nodes/n1/labels", labels).await?.status, 200);
    let removed = host.patch("/api/nodes/n1/labels", json!({"labels": {"room": null}})).await?;
    assert_eq!(removed.body["labels"], json!({"gpu": "a100"}));
    let bad = host.patch("/api/nodes/n1/labels", json!({"labels": {"a b": "c"}})).await?;
    assert_eq!(bad.status, 422);
    let wanted = json!({"node_labels": {"gpu": "a100"}});
    assert_eq!(host.post("/api/vps/create", wanted.clone()).await?.status, 200);
    assert_eq!(host.post("/api/nodes/n1/drain", json!({})).await?.body["drained"], true);
    let refused = host.post("/api/vps/create", wanted.clone()).await?;
    assert!(refused.text("detail").contains("drained"), "{refused:?}");
    assert_eq!(host.post("/api/vps/stop/web", json!({})).await?.status, 202);
    assert_eq!(host.post("/api/nodes/n1/undrain", json!({})).await?.body["drained"], false);
    assert_eq!(host.post("/api/vps/create", wanted).await?.status, 200);
    assert_eq!(host.post("/api/nodes/nope/drain", json!({})).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn events_keep_their_actor_after_deletion() -> Result<()> {
    let (host, runner, task) = with_web().await?;
    let asked = host.get_with("/api/vps", "x-kohakuriver-user", "alice@laptop").await?;
    assert_eq!(asked.status, 200);
    let identity = runner.disconnect().await;
    host.advance(Duration::from_secs(40));
    host.wait_for("web", "lost").await?;
    // The host checks for silence once a second.
    for _ in 0..6000 {
        if kinds(&host, "web").await?.contains(&"lost".to_owned()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
    host.wait_for("web", "running").await?;
    assert_eq!(host.delete("/api/vps/web?force=true").await?.status, 202);
    for _ in 0..6000 {
        if kinds(&host, &task.to_string()).await?.last().is_some_and(|kind| kind == "deleted") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seen = kinds(&host, &task.to_string()).await?;
    assert_eq!(seen.first().map(String::as_str), Some("create"));
    assert!(seen.contains(&"lost".to_owned()), "{seen:?}");
    assert_eq!(seen.last().map(String::as_str), Some("deleted"));
    assert_eq!(host.get("/api/vps/1/events").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn node_history_and_compatible_health_are_served() -> Result<()> {
    let (host, _runner, _) = with_web().await?;
    let samples = async || {
        let health = host.get("/api/nodes/n1/health").await.unwrap().body;
        health["samples"].as_array().unwrap().len()
    };
    for _ in 0..6000 {
        if samples().await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(samples().await > 0);
    host.advance(Duration::from_secs(2 * 3600));
    assert!(samples().await <= 1, "what is older than an hour is not shown");
    let health = host.get("/api/health").await?.body;
    assert_eq!(health["nodes"][0][0]["hostname"], "n1");
    assert_eq!(health["aggregate"][0]["totalCores"], 8);
    let one = host.get("/api/health?hostname=n1").await?;
    assert_eq!((one.status, &one.body[0]["hostname"]), (200, &json!("n1")));
    assert_eq!(host.get("/api/health?hostname=n9").await?.status, 404);
    Ok(())
}
