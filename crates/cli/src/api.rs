//! The client of the HTTP API.

mod accounts;
mod approval;
mod audit;
mod ca;
mod certificates;
mod checked;
mod connect;
mod connection;
mod nodes;
mod probe;
mod session;
mod stream;
mod vps;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderValue};
use kohakuriver_api::{ErrorBody, Health};
use reqwest::{Client, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::error::CommandError;
use crate::settings::{Address, Settings, Token};
use crate::ssh::shell_word;
use crate::trust::Trust;
use crate::{credentials, identity};

use checked::Checked;

pub use approval::With;
pub use connection::Connection;
use connection::Tls;
pub use probe::{Probe, takes_connections};
pub use session::Session;
pub use stream::{Socket, Stream};

/// The connect timeout: a host that takes longer counts as unreachable.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The response timeout of requests that do not ask the host to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The header that names the caller, for the events of a VPS.
const ASKER: &str = "x-kohakuriver-user";

/// The host, connected on first use. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Api {
    address: Address,
    port: u16,
    trust: Trust,
    person: Person,
    way: Arc<OnceCell<Way>>,
}

/// The credential that requests present.
#[derive(Clone, Debug)]
struct Person {
    /// A token from the environment.
    token: Option<Token>,
    folder: Option<PathBuf>,
    insecure: bool,
}

/// A client and the address that answered. Plain requests name that address and never the host's
/// name: a host refuses unknown names, so that no web page can have a browser send requests to it.
/// By https the name is the certificate's, and proxies require it.
#[derive(Debug)]
struct Way {
    client: Client,
    address: SocketAddr,
    /// The base URL of the API: `http://10.0.0.5:8000`.
    base: String,
    /// The value of the `Host` header.
    authority: String,
    tls: Option<Tls>,
    bearer: Option<HeaderValue>,
}

/// A request.
struct Call<'a, B = ()> {
    method: Method,
    path: &'a str,
    query: &'a [(&'a str, String)],
    body: Option<&'a B>,
    /// The response timeout. `None` waits without limit; keep-alive probes still detect a host that
    /// is gone.
    limit: Option<Duration>,
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, query: &[], body: None, limit: Some(ANSWER_LIMIT) }
    }
}

impl<'a, B> Call<'a, B> {
    fn with_body(method: Method, path: &'a str, body: &'a B) -> Self {
        Self { method, path, query: &[], body: Some(body), limit: Some(ANSWER_LIMIT) }
    }
}

impl Api {
    pub fn new(settings: &Settings) -> Self {
        let mut api = Self {
            address: settings.host.value.clone(),
            port: settings.port.value,
            trust: Trust::new(None, ""),
            person: Person {
                token: settings.token.clone(),
                folder: settings.folder.clone(),
                insecure: settings.insecure,
            },
            way: Arc::default(),
        };
        api.trust = Trust::new(settings.folder.as_deref(), &api.place());
        api
    }

    /// Returns the token for this host, from the environment or from a login.
    pub fn token(&self) -> Result<Option<Token>, CommandError> {
        if let Some(token) = &self.person.token {
            return Ok(Some(token.clone()));
        }
        let Some(folder) = &self.person.folder else { return Ok(None) };
        Ok(credentials::load(folder, &self.place())?.map(|known| known.token))
    }

    /// Returns the host's name or address.
    pub fn host(&self) -> &str {
        self.address.as_str()
    }

    /// Returns whether the connection to the host is encrypted.
    pub fn is_https(&self) -> bool {
        self.address.is_https()
    }

    /// Returns the value of `--host` for another process of this program.
    pub fn url(&self) -> String {
        self.address.url(self.port)
    }

    /// Returns `host:port` for messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.address.bracketed(), self.port)
    }

    pub async fn health(&self) -> Result<Health, CommandError> {
        self.get("/api/health").await
    }

    async fn get<T: DeserializeOwned + Checked>(&self, path: &str) -> Result<T, CommandError> {
        self.send(Call::new(Method::GET, path)).await
    }

    async fn post<T: DeserializeOwned + Checked>(&self, path: &str) -> Result<T, CommandError> {
        self.send(Call::new(Method::POST, path)).await
    }

    async fn delete<T: DeserializeOwned + Checked>(
        &self,
        path: &str,
        force: bool,
    ) -> Result<T, CommandError> {
        let query = [("force", force.to_string())];
        self.send(Call { query: &query, ..Call::new(Method::DELETE, path) }).await
    }

    async fn send<B: Serialize, T: DeserializeOwned + Checked>(
        &self,
        call: Call<'_, B>,
    ) -> Result<T, CommandError> {
        let way = self.way.get_or_try_init(|| self.find_way()).await?;
        let url = format!("{}{}", way.base, call.path);
        let mut request = way.client.request(call.method, url).header(ASKER, identity::asker());
        if let Some(bearer) = &way.bearer {
            request = request.header(AUTHORIZATION, bearer);
        }
        if let Some(limit) = call.limit {
            request = request.timeout(limit);
        }
        if !call.query.is_empty() {
            request = request.query(call.query);
        }
        if let Some(body) = call.body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.unreachable(way, &error))?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(self.redirected(answer.headers()));
        }
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(way, &error))?;
        if status.is_success() {
            return self
                .read(status, &bytes)
                .map_err(|failure| CommandError { maybe_done: true, ..failure });
        }
        Err(self.refusal(status, &bytes))
    }

    /// Parses a successful response and checks its names.
    fn read<T: DeserializeOwned + Checked>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, CommandError> {
        let answer: T = serde_json::from_slice(body).map_err(|error| {
            tracing::debug!(%error, "unreadable answer");
            self.stranger(status)
        })?;
        answer.check().map_err(|invalid| {
            let (what, place) = (invalid.what, self.place());
            CommandError::distrusted(format!(
                "the host {place} sent an invalid {what}: {:?}",
                invalid.text
            ))
            .hint(
                "its response was discarded; see `kohakuriver version`, or ask the host's operator",
            )
        })?;
        Ok(answer)
    }

    /// Builds the error of an unsuccessful response.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> CommandError {
        let Ok(body) = serde_json::from_slice::<ErrorBody>(body) else {
            return self.stranger(status);
        };
        match status {
            StatusCode::NOT_FOUND => CommandError::not_found(body),
            StatusCode::UNAUTHORIZED => CommandError::log_in(body),
            _ if body.code == "log_in_again" => CommandError::log_in_again(body),
            _ if body.code == "https_only" => {
                let url = self.url().replacen("http:", "https:", 1);
                CommandError::usage(format!("the host {} accepts https only", self.place()))
                    .hint(format!("--host {url}, or KOHAKURIVER_HOST={url}"))
            }
            // The node was reached, and what is asked for is not there.
            _ if body.code == "refused" => {
                CommandError { hint: body.hint, ..CommandError::request(body.detail) }
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
                CommandError { hint: body.hint, ..CommandError::unavailable(body.detail) }
            }
            _ => CommandError { hint: body.hint, ..CommandError::request(body.detail) },
        }
    }

    async fn find_way(&self) -> Result<Way, CommandError> {
        let token = self.token()?;
        let address = self.find_address().await?;
        let clear = !self.is_https() && !address.ip().is_loopback() && !self.person.insecure;
        if token.is_some() && clear {
            let url = self.url().replacen("http:", "https:", 1);
            return Err(CommandError::usage(format!(
                "everybody between here and {} could read your token: it is not sent over http",
                self.place()
            ))
            .hint(format!("--host {url}; or KOHAKURIVER_INSECURE=1 on a network that you trust")));
        }
        let tls = if self.is_https() { Some(self.tls(self.trust.client()?)?) } else { None };
        let authority = if self.is_https() { self.place() } else { address.to_string() };
        let scheme = if self.is_https() { "https" } else { "http" };
        let client = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .user_agent(concat!("kohakuriver/", env!("CARGO_PKG_VERSION")))
            // The host is on the local network; a proxy of the environment is for the Internet.
            .no_proxy()
            // The host answers and sends nowhere: not to a service that only this machine reaches.
            .redirect(reqwest::redirect::Policy::none())
            // Also of an address that an answer leads to.
            .dns_resolver(Arc::new(kohakuriver_net::HttpNames))
            .tcp_nodelay(true);
        let client = match &tls {
            Some(tls) => client
                .https_only(true)
                .resolve(self.address.as_str(), address)
                .tls_backend_preconfigured(tls.config.as_ref().clone()),
            // Reading the system's certificates would only take time, and fail where there are
            // none.
            None => client.tls_certs_only([]),
        };
        let client = client
            .build()
            .map_err(|error| CommandError::request(format!("cannot use HTTP: {error}")))?;
        let bearer = token.as_ref().and_then(Token::bearer);
        Ok(Way { client, address, base: format!("{scheme}://{authority}"), authority, tls, bearer })
    }

    async fn find_address(&self) -> Result<SocketAddr, CommandError> {
        let addresses =
            kohakuriver_net::resolve(self.address.as_str(), self.port).await.map_err(|error| {
                // What follows the first sentence is the resolver's own jargon.
                let text = error.to_string();
                self.not_reached(text.split(": ").next().unwrap_or(&text))
            })?;
        connect::first_that_answers(&addresses, CONNECT_LIMIT)
            .await
            .map_err(|error| self.not_reached(&plain(&error)))
    }

    fn unreachable(&self, way: &Way, error: &reqwest::Error) -> CommandError {
        if let (Some(tls), Some(cause)) = (&way.tls, connection::tls_error(error)) {
            return tls.witness.explain(cause, &self.url());
        }
        let reason =
            if error.is_timeout() { "no response in time".to_owned() } else { innermost(error) };
        // Where not even a connection stood, the host knows of nothing.
        CommandError { maybe_done: !error.is_connect(), ..self.not_reached(&reason) }
    }

    fn not_reached(&self, reason: &str) -> CommandError {
        CommandError::unreachable(format!("the host {} is not reachable: {reason}", self.place())).hint(
            "start one here with `kohakuriver up`, or name another with --host or KOHAKURIVER_HOST",
        )
    }

    fn redirected(&self, headers: &HeaderMap) -> CommandError {
        let failure = CommandError::request(format!(
            "the server at {} is no KohakuRiver host: it redirects",
            self.place()
        ));
        let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()?.parse::<http::Uri>().ok());
        match to.and_then(|to| Some(format!("{}://{}", to.scheme_str()?, to.authority()?))) {
            Some(to) => failure.hint(format!("if you trust it: --host {}", shell_word(&to))),
            None => failure,
        }
    }

    fn stranger(&self, status: StatusCode) -> CommandError {
        CommandError::request(format!(
            "the server at {} is not a KohakuRiver host of this version (HTTP {})",
            self.place(),
            status.as_u16()
        ))
        .hint("see `kohakuriver config show` for the address in use, and `kohakuriver version`")
    }
}

/// Returns the innermost cause, which is the one users know, for example "connection refused".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    plain(deepest)
}

pub fn plain(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((plain, _)) => plain.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
