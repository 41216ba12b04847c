//! A host for one test.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use kohakuriver_host::{AuthConfig, Clock, Deadlines, Host, HostConfig, HttpsMode, ManualClock};
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::token::JoinToken;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A running host, its data and its clock.
#[derive(Debug)]
pub struct TestHost {
    pub host: Host,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    config: HostConfig,
    http: reqwest::Client,
    /// The credential of requests on a host with accounts: the first admin's.
    token: Option<String>,
}

/// An account on a [`TestHost`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Person {
    pub id: i64,
    pub name: String,
    pub token: String,
}

/// The password of every test account.
pub const PASSWORD: &str = "correct horse";

/// The API's response.
#[derive(Debug)]
#[must_use]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// Returns the text at `key`, empty where it is absent.
    pub fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_default()
    }
}

impl TestHost {
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// Starts a host with other settings.
    pub async fn start_with(configure: impl FnOnce(&mut HostConfig)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut config = config(dir.path());
        configure(&mut config);
        // Whoever checks certificates goes by the real time.
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let now_ms = i64::try_from(now_ms)?;
        Self::on(dir, config, Arc::new(ManualClock::at(now_ms))).await
    }

    /// Ends the host and starts another on the same data.
    pub async fn restart(self) -> Result<Self> {
        let Self { host, clock, dir, config, http: _, token } = self;
        host.stop().await;
        Ok(Self { token, ..Self::on(dir, config, clock).await? })
    }

    async fn on(
        dir: tempfile::TempDir,
        config: HostConfig,
        clock: Arc<ManualClock>,
    ) -> Result<Self> {
        let host = Host::start(config.clone(), Clock::Manual(clock.clone())).await?;
        let http = match config.https {
            HttpsMode::OwnCa => trusting(&dir.path().join("ca.pem"))?,
            HttpsMode::Off | HttpsMode::Files { .. } => reqwest::Client::new(),
        };
        let mut host = Self { host, clock, dir, config, http, token: None };
        if let Some(invitation) = host.host.setup_invitation().await? {
            host.token = Some(host.register("root", &invitation).await?.token);
        }
        Ok(host)
    }

    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn now_ms(&self) -> i64 {
        Clock::Manual(self.clock.clone()).now_ms()
    }

    /// Advances the host's clocks.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Sets the host's wall clock and leaves its monotonic clock.
    pub fn step_clock(&self, by_ms: i64) {
        self.clock.step(by_ms);
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

    pub async fn put(&self, path: &str) -> Result<Answer> {
        self.send(self.http.put(self.url(path))).await
    }

    pub async fn put_json(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(self.http.put(self.url(path)).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.http.delete(self.url(path))).await
    }

    /// Creates an account of that role, with a token.
    pub async fn person(&self, name: &str, role: &str) -> Result<Person> {
        let invited = self.post("/api/auth/invitations", json!({"role": role})).await?;
        self.register(name, invited.text("token")).await
    }

    async fn register(&self, name: &str, invitation: &str) -> Result<Person> {
        let url = self.url(&format!("/api/auth/register?token={invitation}"));
        let body = json!({"username": name, "password": PASSWORD});
        let response = self.http.post(url).json(&body).send().await?;
        anyhow::ensure!(response.status().is_success(), "{}", response.text().await?);
        let cookie = response.headers().get("set-cookie").context("a session begins")?.clone();
        let cookie = cookie.to_str()?.split(';').next().unwrap_or_default().to_owned();
        let id = response.json::<Value>().await?["user"]["id"].as_i64().context("an id")?;
        let made = self
            .http
            .post(self.url("/api/auth/tokens/create"))
            .header("cookie", cookie)
            .json(&json!({"name": "test"}));
        let token = made.send().await?.json::<Value>().await?["token"].as_str().map(str::to_owned);
        Ok(Person { id, name: name.to_owned(), token: token.context("a token")? })
    }

    /// Sends a request as an account, or anonymously.
    pub async fn ask(
        &self,
        who: Option<&Person>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut request = self.http.request(method.parse()?, self.url(path));
        if let Some(person) = who {
            request = request.bearer_auth(&person.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// Sends a GET request as [`Self::ask`] does.
    pub async fn get_as(&self, who: &Person, path: &str) -> Result<Answer> {
        self.ask(Some(who), "GET", path, None).await
    }

    /// Sends a POST request as [`Self::ask`] does.
    pub async fn post_as(&self, who: &Person, path: &str, body: Value) -> Result<Answer> {
        self.ask(Some(who), "POST", path, Some(&body)).await
    }

    /// Changes an entry of the audit log directly in the database.
    pub async fn break_audit(&self, seq: i64) -> Result<()> {
        use sqlx::Connection;
        let url = format!("sqlite://{}", self.dir.path().join("host.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await?;
        sqlx::query("UPDATE audit SET actor = 'mallory' WHERE seq = $1")
            .bind(seq)
            .execute(&mut database)
            .await?;
        database.close().await?;
        Ok(())
    }

    /// Gives an account a name that a new one could not have.
    pub async fn rename_user(&self, id: i64, name: &str) -> Result<()> {
        use sqlx::Connection;
        let url = format!("sqlite://{}", self.dir.path().join("host.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await?;
        let sql = "UPDATE users SET username = $2 WHERE id = $1";
        sqlx::query(sql).bind(id).bind(name).execute(&mut database).await?;
        database.close().await?;
        Ok(())
    }

    /// Changes an instance to the form of a version without certificates.
    pub async fn forget_ssh_ca(&self, id: &str) -> Result<()> {
        use sqlx::Connection;
        let url = format!("sqlite://{}", self.dir.path().join("host.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await?;
        let sql = "UPDATE instances SET spec = json_remove(spec, '$.ssh.trusted_ca') WHERE id = $1";
        let done = sqlx::query(sql).bind(id.parse::<i64>()?).execute(&mut database).await?;
        anyhow::ensure!(done.rows_affected() == 1, "there is no such instance");
        database.close().await?;
        Ok(())
    }

    /// Puts JSON into an instance's specification, as another version may have stored it.
    pub async fn set_in_spec(&self, id: &str, path: &str, value: &str) -> Result<()> {
        use sqlx::Connection;
        let url = format!("sqlite://{}", self.dir.path().join("host.db").display());
        let mut database = sqlx::SqliteConnection::connect(&url).await?;
        let sql = "UPDATE instances SET spec = json_set(spec, $2, json($3)) WHERE id = $1";
        let done = sqlx::query(sql)
            .bind(id.parse::<i64>()?)
            .bind(path)
            .bind(value)
            .execute(&mut database)
            .await?;
        anyhow::ensure!(done.rows_affected() == 1, "there is no such instance");
        database.close().await?;
        Ok(())
    }

    /// Requests an upgrade and closes the connection; returns the status and the error code.
    pub async fn knock(
        &self,
        who: Option<&Person>,
        path: &str,
        protocol: &str,
    ) -> Result<(u16, String)> {
        let mut request = self
            .http
            .get(self.url(path))
            .header("connection", "upgrade")
            .header("upgrade", protocol)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        if let Some(person) = who {
            request = request.bearer_auth(&person.token);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        if status == 101 {
            return Ok((status, String::new()));
        }
        let body: Value = response.json().await?;
        Ok((status, body["code"].as_str().unwrap_or_default().to_owned()))
    }

    /// Returns the id of the VPS with this name, if it exists.
    pub async fn find(&self, text: &str) -> Result<Option<String>> {
        let answer = self.get(&format!("/api/status/{text}")).await?;
        Ok((answer.status == 200).then(|| answer.text("task_id").to_owned()))
    }

    /// Waits until no VPS has this name. Bounded.
    pub async fn wait_gone(&self, text: &str) -> Result<()> {
        for _ in 0..6000 {
            if self.find(text).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("it is still there")
    }

    /// Sends a request with the test's headers.
    pub async fn get_with(&self, path: &str, header: &str, value: &str) -> Result<Answer> {
        self.send(self.http.get(self.url(path)).header(header, value)).await
    }

    pub async fn join_token(&self) -> Result<JoinToken> {
        let answer = self.post("/api/nodes/tokens", json!({})).await?;
        Ok(answer.text("token").parse()?)
    }

    /// Waits until the task's status is `wanted`. Bounded; responses come by long poll.
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
        answer(match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
        .await
    }
}

/// Sends a request. A body that is no JSON, such as a page or a file, becomes text.
async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let bytes = response.bytes().await?;
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
    Ok(Answer { status, body })
}

/// Returns a client that trusts only this CA.
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
        https: HttpsMode::Off,
        trusted_proxies: Vec::new(),
        link_bind: loopback,
        link_port: 0,
        link_address: HostAddress { host: loopback.to_string(), port: 0 },
        lost_after: Duration::from_secs(30),
        auth: AuthConfig::default(),
        history: kohakuriver_host::History::default(),
        deadlines: Deadlines::default(),
    }
}
