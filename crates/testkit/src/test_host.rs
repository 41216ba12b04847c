//! A host for one test.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use kohakuriver_host::{AuthConfig, Clock, Host, HostConfig, PeopleTls};
use kohakuriver_link::client::HostAddress;
use kohakuriver_link::token::JoinToken;
use serde_json::Value;

/// A running host, its data and its clock.
#[derive(Debug)]
pub struct TestHost {
    pub host: Host,
    now_ms: Arc<AtomicI64>,
    dir: tempfile::TempDir,
    config: HostConfig,
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
        Self::start_with(|_| {}).await
    }

    /// A host with other settings.
    pub async fn start_with(configure: impl FnOnce(&mut HostConfig)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut config = config(dir.path());
        configure(&mut config);
        // Who checks certificates has the real time.
        let now_ms = match config.people_tls {
            PeopleTls::Off => 1_790_000_000_000,
            PeopleTls::OwnCa | PeopleTls::Files { .. } => {
                i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?
            }
        };
        let now_ms = Arc::new(AtomicI64::new(now_ms));
        Self::on(dir, config, now_ms).await
    }

    /// Ends the host and starts another on the same data.
    pub async fn restart(self) -> Result<Self> {
        let Self { host, now_ms, dir, config, http: _ } = self;
        host.stop().await;
        Self::on(dir, config, now_ms).await
    }

    async fn on(
        dir: tempfile::TempDir,
        config: HostConfig,
        now_ms: Arc<AtomicI64>,
    ) -> Result<Self> {
        let host = Host::start(config.clone(), Clock::Manual(now_ms.clone())).await?;
        let http = match config.people_tls {
            PeopleTls::OwnCa => trusting(&dir.path().join("ca.pem"))?,
            PeopleTls::Off | PeopleTls::Files { .. } => reqwest::Client::new(),
        };
        Ok(Self { host, now_ms, dir, config, http })
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
        format!("{}://{}{path}", self.host.scheme(), self.host.api_address())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        let body = response.json().await.context("every answer is JSON")?;
        Ok(Answer { status, body })
    }
}

/// A client that believes this CA and no other.
fn trusting(ca: &Path) -> Result<reqwest::Client> {
    let pem = std::fs::read_to_string(ca)?;
    let start = pem.find("-----BEGIN CERTIFICATE").context("the CA has a certificate")?;
    let ca = reqwest::Certificate::from_pem(&pem.as_bytes()[start..])?;
    Ok(reqwest::Client::builder().tls_certs_only([ca]).build()?)
}

fn config(dir: &Path) -> HostConfig {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    HostConfig {
        data_dir: dir.to_owned(),
        bind: loopback,
        port: 0,
        ssh_port: 0,
        names: Vec::new(),
        people_tls: PeopleTls::Off,
        trusted_proxies: Vec::new(),
        link_bind: loopback,
        link_port: 0,
        link_address: HostAddress { host: loopback.to_string(), port: 0 },
        lost_after: Duration::from_secs(30),
        auth: AuthConfig::default(),
    }
}
