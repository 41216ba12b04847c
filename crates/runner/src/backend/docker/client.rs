//! The way to the engine.
//!
//! ```text
//!  unknown --version answered--> known (API version agreed) --request failed to reach it--> unknown
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, Docker};
use kohakuriver_model::DockerState;

use crate::backend::BackendError;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// For the head of an answer; an engine that is silent for longer is stuck.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// Loads and imports answer only when they are done.
const PATIENT_LIMIT: Duration = Duration::from_secs(3600);
/// An engine asks other programs for their versions before it tells its own, which takes seconds on
/// a node that is busy.
const AGREE_LIMIT: Duration = Duration::from_secs(20);
const PROBE_LIMIT: Duration = Duration::from_secs(5);

const SILENT: &str = "it does not answer";

#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    agreed: Mutex<Option<Agreed>>,
}

#[derive(Clone, Debug)]
struct Agreed {
    docker: Docker,
    /// The engine's own.
    version: String,
}

impl Engine {
    pub fn new(socket: Option<PathBuf>) -> Self {
        let from_environment = || {
            let address = std::env::var("DOCKER_HOST").ok()?;
            address.strip_prefix("unix://").map(PathBuf::from)
        };
        let socket =
            socket.or_else(from_environment).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        Self { socket, agreed: Mutex::new(None) }
    }

    /// A client that speaks the engine's version of the API.
    pub async fn docker(&self) -> Result<Docker, BackendError> {
        Ok(self.agreed().await?.docker)
    }

    /// A client for what takes as long as it takes.
    pub async fn patient(&self) -> Result<Docker, BackendError> {
        Ok(self.docker().await?.with_timeout(PATIENT_LIMIT))
    }

    /// Whether it answers now.
    pub async fn probe(&self) -> DockerState {
        let answer = async {
            let Agreed { docker, version } = self.agreed().await?;
            match tokio::time::timeout(PROBE_LIMIT, docker.ping()).await {
                Ok(Ok(_)) => Ok(version),
                Ok(Err(error)) => Err(self.failure(error)),
                Err(_) => Err(self.unavailable(SILENT)),
            }
        };
        match answer.await {
            Ok(version) => DockerState::Ready { version },
            Err(error) => {
                let hint = error.hint().map(|hint| format!(": {hint}")).unwrap_or_default();
                let BackendError::Unavailable { reason, .. } = &error else {
                    return DockerState::Unavailable { reason: format!("{error}{hint}") };
                };
                DockerState::Unavailable { reason: format!("{reason}{hint}") }
            }
        }
    }

    /// Maps an error of an operation that cannot be at fault itself; drops the connection to an engine that is down.
    pub fn failure(&self, error: Error) -> BackendError {
        self.refused("do", error)
    }

    /// As [`Self::failure`], naming the act for the case that the engine said no.
    pub fn refused(&self, act: &'static str, error: Error) -> BackendError {
        let text = plain(&error);
        if is_disk_full(&text) {
            return BackendError::DiskFull { reason: text };
        }
        let said_no = matches!(
            error,
            Error::DockerResponseServerError { .. } | Error::DockerStreamError { .. }
        );
        if text.contains("could not select device driver") {
            return BackendError::NoGpuRuntime { reason: text };
        }
        if said_no && is_engine_trouble(&text) {
            return self.unavailable(&text);
        }
        if said_no {
            return BackendError::Refused { by: "Docker", act, reason: text };
        }
        // Bollard's other errors are ways of not getting a whole answer.
        self.set(None);
        if matches!(error, Error::RequestTimeoutError) {
            return BackendError::Slow { act, seconds: REQUEST_LIMIT.as_secs() };
        }
        self.unavailable(&innermost(&error))
    }

    async fn agreed(&self) -> Result<Agreed, BackendError> {
        if let Some(agreed) = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(agreed);
        }
        let agreed = self.agree().await?;
        self.set(Some(agreed.clone()));
        Ok(agreed)
    }

    async fn agree(&self) -> Result<Agreed, BackendError> {
        let path = self.socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| self.unavailable(&innermost(&error)))?;
        let agreeing = async {
            let docker = docker.negotiate_version().await?;
            let version = docker.version().await?.version.unwrap_or_default();
            Ok(Agreed { docker, version })
        };
        match tokio::time::timeout(AGREE_LIMIT, agreeing).await {
            Ok(answer) => answer.map_err(|error: Error| self.unavailable(&innermost(&error))),
            Err(_) => Err(self.unavailable(SILENT)),
        }
    }

    fn unavailable(&self, reason: &str) -> BackendError {
        let at = self.socket.display();
        BackendError::Unavailable {
            reason: format!("{reason} ({at})"),
            hint: hint(&self.socket).to_owned(),
        }
    }

    fn set(&self, agreed: Option<Agreed>) {
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = agreed;
    }
}

fn hint(socket: &Path) -> &'static str {
    match std::fs::metadata(socket) {
        Ok(_) => "start it with 'systemctl start docker', and run the runner as root",
        Err(_) => {
            "install Docker on the node ('apt-get install docker.io') and start it with \
             'systemctl start docker'"
        }
    }
}

/// The engine's own words, without the client's wrapping.
pub fn plain(error: &Error) -> String {
    if let Error::DockerResponseServerError { message, .. } = error {
        return message.clone();
    }
    if let Error::DockerStreamError { error } = error {
        return error.clone();
    }
    chain(error)
}

pub fn is_disk_full(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

/// The engine answered, but its own parts did not: it is on its way down or up, and says nothing
/// about the container.
fn is_engine_trouble(text: &str) -> bool {
    const SIGNS: [&str; 7] = [
        "ttrpc",
        "transport is closing",
        "rpc error",
        "containerd.sock",
        "context canceled",
        "connection error",
        "shim disconnected",
    ];
    SIGNS.iter().any(|sign| text.contains(sign))
}

pub fn status(error: &Error) -> Option<u16> {
    let Error::DockerResponseServerError { status_code, .. } = error else {
        return None;
    };
    Some(*status_code)
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

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// An engine that takes its time to tell its version.
    async fn serve(listener: UnixListener, slow: Duration, asked: Arc<Mutex<Vec<String>>>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap().to_owned();
                let answer = match path.ends_with("/version") {
                    true => {
                        tokio::time::sleep(slow).await;
                        r#"{"Version":"20.10.24","ApiVersion":"1.41"}"#
                    }
                    false => "OK",
                };
                asked.lock().unwrap().push(path);
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json";
                let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    }

    #[tokio::test]
    async fn an_engine_is_asked_its_version_once_and_may_be_slow_to_tell() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        tokio::spawn(serve(listener, PROBE_LIMIT / 2 + PROBE_LIMIT / 10, Arc::clone(&asked)));
        let engine = Engine::new(Some(socket));
        let ready = DockerState::Ready { version: "20.10.24".to_owned() };
        assert_eq!(engine.probe().await, ready);
        asked.lock().unwrap().clear();
        assert_eq!(engine.probe().await, ready);
        let asked = asked.lock().unwrap();
        assert!(matches!(&asked[..], [path] if path.ends_with("/_ping")), "{asked:?}");
    }
}
