//! A host for one test.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use kohakuriver_host::{Clock, Host, HostConfig};
use kohakuriver_link::client::HostAddress;
use kohakuriver_link::token::JoinToken;
use serde_json::Value;

/// A running host, its data and its clock.
#[derive(Debug)]
pub struct TestHost {
    pub host: Host,
    now_ms: Arc<AtomicI64>,
    dir: tempfile::TempDir,
    http: reqwest::Client,
}

/// What the API answered.
#[derive(Debug)]
#[must_use]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The text at `key`, empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_default()
    }
}

impl TestHost {
    pub async fn start() -> Result<Self> {
        let now_ms = Arc::new(AtomicI64::new(1_790_000_000_000));
        let dir = tempfile::tempdir()?;
        let host = start(dir.path(), &now_ms).await?;
        Ok(Self { host, now_ms, dir, http: reqwest::Client::new() })
    }

    /// Ends the host and starts another on the same data.
    pub async fn restart(self) -> Result<Self> {
        let Self { host, now_ms, dir, http } = self;
        host.stop().await;
        let host = start(dir.path(), &now_ms).await?;
        Ok(Self { host, now_ms, dir, http })
    }

    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    /// Moves the host's clock.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.now_ms.fetch_add(by, Ordering::SeqCst);
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.http.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(self.http.post(self.url(path)).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(self.http.patch(self.url(path)).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.http.delete(self.url(path))).await
    }

    /// A request with headers of the test's choice.
    pub async fn get_with(&self, path: &str, header: &str, value: &str) -> Result<Answer> {
        self.send(self.http.get(self.url(path)).header(header, value)).await
    }

    pub async fn join_token(&self) -> Result<JoinToken> {
        let answer = self.post("/api/nodes/tokens", serde_json::json!({})).await?;
        Ok(answer.text("token").parse()?)
    }

    /// Asks until the task's status is `wanted`. Bounded; the answers come by long poll.
    pub async fn wait_for(&self, task: &str, wanted: &str) -> Result<Value> {
        let mut seen = Value::Null;
        for _ in 0..200 {
            let since = seen["revision"].as_u64();
            let query = since.map(|since| format!("?since={since}&timeout=1")).unwrap_or_default();
            seen = self.get(&format!("/api/status/{task}{query}")).await?.body;
            if seen["status"] == wanted {
                return Ok(seen);
            }
        }
        anyhow::bail!("never became {wanted}: {seen}")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host.api_address())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body = response.json().await.context("every answer is JSON")?;
        Ok(Answer { status, body })
    }
}

async fn start(dir: &Path, now_ms: &Arc<AtomicI64>) -> Result<Host> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let config = HostConfig {
        data_dir: dir.to_owned(),
        bind: loopback,
        port: 0,
        ssh_port: 0,
        names: Vec::new(),
        link_bind: loopback,
        link_port: 0,
        link_address: HostAddress { host: loopback.to_string(), port: 0 },
        lost_after: Duration::from_secs(30),
    };
    Ok(Host::start(config, Clock::Manual(now_ms.clone())).await?)
}
