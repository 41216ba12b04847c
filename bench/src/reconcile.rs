//! A host that reconnects to a node with a thousand instances: the time until its statuses are
//! right.
//!
//! The node is a fake, so that only the host is measured: a thousand commands out, a thousand
//! reports in, each changed one written to disk.

use std::time::{Duration, Instant};

use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;

use crate::sample::Line;

const INSTANCES: usize = 1000;

pub fn run() -> Vec<Line> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(measure()).expect("a host and a runner of words")
}

async fn measure() -> anyhow::Result<Vec<Line>> {
    let mut host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    for _ in 0..INSTANCES {
        let answer = host.post("/api/vps/create?wait=false", json!({"required_cores": 0})).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
    }
    until(&host, "running").await?;
    let mut identity = runner.disconnect().await;
    let mut same = Vec::new();
    for _ in 0..5 {
        host = host.restart().await?;
        let began = Instant::now();
        let runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
        until(&host, "running").await?;
        same.push(began.elapsed());
        identity = runner.disconnect().await;
    }
    for task in host.get("/api/vps").await?.body.as_array().into_iter().flatten() {
        let id = task["task_id"].as_str().unwrap_or_default();
        let answer = host.post(&format!("/api/vps/stop/{id}"), json!({})).await?;
        anyhow::ensure!(answer.status == 202, "{answer:?}");
    }
    host = host.restart().await?;
    let began = Instant::now();
    let _runner = FakeRunner::connect(&host, identity, Reaction::Obey, Vec::new()).await?;
    until(&host, "stopped").await?;
    let changed = began.elapsed();
    Ok(vec![
        Line::millis(format!("{INSTANCES} instances after a host restart"), &same),
        Line::millis("  all of them stopped meanwhile", &[changed]),
    ])
}

async fn until(host: &TestHost, word: &str) -> anyhow::Result<()> {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let tasks = host.get("/api/vps").await?.body;
        let right =
            |task: &serde_json::Value| task["status"] == word && task["transition"].is_null();
        let count = tasks.as_array().into_iter().flatten().filter(|task| right(task)).count();
        if count == INSTANCES {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < limit, "{count} of {INSTANCES} are {word}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
