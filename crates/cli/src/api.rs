//! The HTTP API as the commands call it.

use std::time::Duration;

use kohakuriver_api::{
    CreateVps, CreatedVps, ErrorBody, Health, JoinToken, JoinTokenRequest, Message, Node, Task,
};
use reqwest::{Client, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::failure::Failure;
use crate::settings::Address;

/// A machine that does not take a connection in this time is as good as off.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The host answers everything at once, except where it is asked to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long one question for news may stay open; the host allows at most 30.
const POLL_SECONDS: u64 = 25;

/// The host, reached on first use.
#[derive(Debug)]
pub struct Api {
    address: Address,
    port: u16,
    client: OnceCell<Client>,
}

/// One request.
struct Call<'a, B> {
    method: Method,
    path: &'a str,
    query: &'a [(&'a str, String)],
    body: Option<&'a B>,
    limit: Duration,
}

impl Api {
    pub fn new(address: Address, port: u16) -> Self {
        Self { address, port, client: OnceCell::new() }
    }

    /// `host:port`, for people.
    pub fn place(&self) -> String {
        format!("{}:{}", self.address.bracketed(), self.port)
    }

    pub async fn vps_all(&self) -> Result<Vec<Task>, Failure> {
        self.get("/api/vps", &[]).await
    }

    pub async fn vps_active(&self) -> Result<Vec<Task>, Failure> {
        self.get("/api/vps/status", &[]).await
    }

    pub async fn task(&self, reference: &str) -> Result<Task, Failure> {
        self.get(&format!("/api/status/{reference}"), &[]).await
    }

    /// Waits for a revision after `since`, or answers the same one after a while.
    pub async fn task_after(&self, reference: &str, since: u64) -> Result<Task, Failure> {
        let query = [("since", since.to_string()), ("timeout", POLL_SECONDS.to_string())];
        self.send(Call::<()> {
            method: Method::GET,
            path: &format!("/api/status/{reference}"),
            query: &query,
            body: None,
            limit: Duration::from_secs(POLL_SECONDS + 10),
        })
        .await
    }

    pub async fn create_vps(&self, body: &CreateVps) -> Result<CreatedVps, Failure> {
        self.send(Call {
            method: Method::POST,
            path: "/api/vps/create",
            query: &[("wait", "false".to_owned())],
            body: Some(body),
            limit: ANSWER_LIMIT,
        })
        .await
    }

    pub async fn stop_vps(&self, reference: &str) -> Result<Message, Failure> {
        self.post(&format!("/api/vps/stop/{reference}")).await
    }

    pub async fn restart_vps(&self, reference: &str) -> Result<Message, Failure> {
        self.post(&format!("/api/vps/restart/{reference}")).await
    }

    pub async fn delete_vps(&self, reference: &str, force: bool) -> Result<Message, Failure> {
        self.delete(&format!("/api/vps/{reference}"), force).await
    }

    pub async fn nodes(&self) -> Result<Vec<Node>, Failure> {
        self.get("/api/nodes", &[]).await
    }

    pub async fn node(&self, name: &str) -> Result<Node, Failure> {
        self.get(&format!("/api/nodes/{name}"), &[]).await
    }

    pub async fn remove_node(&self, name: &str, force: bool) -> Result<serde_json::Value, Failure> {
        self.delete(&format!("/api/nodes/{name}"), force).await
    }

    pub async fn join_token(&self, body: &JoinTokenRequest) -> Result<JoinToken, Failure> {
        self.send(Call {
            method: Method::POST,
            path: "/api/nodes/tokens",
            query: &[],
            body: Some(body),
            limit: ANSWER_LIMIT,
        })
        .await
    }

    pub async fn health(&self) -> Result<Health, Failure> {
        self.get("/api/health", &[]).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        let method = Method::GET;
        self.send(Call::<()> { method, path, query, body: None, limit: ANSWER_LIMIT }).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let method = Method::POST;
        self.send(Call::<()> { method, path, query: &[], body: None, limit: ANSWER_LIMIT }).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str, force: bool) -> Result<T, Failure> {
        let query = [("force", force.to_string())];
        let method = Method::DELETE;
        self.send(Call::<()> { method, path, query: &query, body: None, limit: ANSWER_LIMIT }).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        call: Call<'_, B>,
    ) -> Result<T, Failure> {
        let client = self.client.get_or_try_init(|| self.build()).await?;
        let url = format!("http://{}{}", self.place(), call.path);
        let mut request = client.request(call.method, url).timeout(call.limit);
        if !call.query.is_empty() {
            request = request.query(call.query);
        }
        if let Some(body) = call.body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| {
                tracing::debug!(%error, path = call.path, "unreadable answer");
                self.stranger(status)
            });
        }
        let Ok(body) = serde_json::from_slice::<ErrorBody>(&bytes) else {
            return Err(self.stranger(status));
        };
        Err(match status {
            StatusCode::NOT_FOUND => Failure::not_found(body),
            _ => Failure { hint: body.hint, ..Failure::request(body.detail) },
        })
    }

    async fn build(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("kohakuriver/", env!("CARGO_PKG_VERSION")))
            // The host is on the local network; a proxy of the environment is for the Internet.
            .no_proxy()
            .no_hickory_dns()
            .tcp_nodelay(true);
        if !self.address.is_ip() {
            let addresses = kohakuriver_net::resolve(self.address.as_str(), self.port)
                .await
                // What follows the first sentence is the resolver's own jargon.
                .map_err(|error| {
                    let text = error.to_string();
                    self.not_reached(text.split(": ").next().unwrap_or(&text))
                })?;
            builder = builder.resolve_to_addrs(self.address.as_str(), &addresses);
        }
        builder.build().map_err(|error| Failure::request(format!("cannot speak HTTP: {error}")))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let reason = if error.is_timeout() {
            "it did not answer in time".to_owned()
        } else {
            innermost(error)
        };
        self.not_reached(&reason)
    }

    fn not_reached(&self, reason: &str) -> Failure {
        Failure::unreachable(format!("the host {} is not reachable: {reason}", self.place())).hint(
            "start one here with `kohakuriver up`, or name another with --host or KOHAKURIVER_HOST",
        )
    }

    fn stranger(&self, status: StatusCode) -> Failure {
        Failure::request(format!(
            "what answers at {} is not a KohakuRiver host of this version (HTTP {})",
            self.place(),
            status.as_u16()
        ))
        .hint("see `kohakuriver config show` for the address in use, and `kohakuriver version`")
    }
}

/// The cause at the bottom is the one people know, for example "connection refused".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let text = deepest.to_string();
    match text.split_once(" (os error") {
        Some((plain, _)) => plain.to_lowercase(),
        None => text,
    }
}
