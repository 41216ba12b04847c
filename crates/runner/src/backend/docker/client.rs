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
const PROBE_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    agreed: Mutex<Option<Docker>>,
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
        if let Some(docker) = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(docker);
        }
        let docker = self.agree().await?;
        self.set(Some(docker.clone()));
        Ok(docker)
    }

    /// A client for what takes as long as it takes.
    pub async fn patient(&self) -> Result<Docker, BackendError> {
        Ok(self.docker().await?.with_timeout(PATIENT_LIMIT))
    }

    pub async fn probe(&self) -> DockerState {
        let version = async {
            let docker = self.docker().await?;
            docker.version().await.map_err(|error| self.failure(error))
        };
        match tokio::time::timeout(PROBE_LIMIT, version).await {
            Ok(Ok(version)) => DockerState::Ready { version: version.version.unwrap_or_default() },
            Ok(Err(error)) => {
                let hint = error.hint().map(|hint| format!(": {hint}")).unwrap_or_default();
                let BackendError::Unavailable { reason, .. } = &error else {
                    return DockerState::Unavailable { reason: format!("{error}{hint}") };
                };
                DockerState::Unavailable { reason: format!("{reason}{hint}") }
            }
            Err(_) => DockerState::Unavailable {
                reason: format!("it does not answer at {}", self.socket.display()),
            },
        }
    }

    /// What an error means where the act itself cannot be at fault; forgets an engine that is away.
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

    async fn agree(&self) -> Result<Docker, BackendError> {
        let path = self.socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, REQUEST_LIMIT.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| self.unavailable(&innermost(&error)))?;
        match tokio::time::timeout(PROBE_LIMIT, docker.negotiate_version()).await {
            Ok(answer) => answer.map_err(|error| self.unavailable(&innermost(&error))),
            Err(_) => Err(self.unavailable("it does not answer")),
        }
    }

    fn unavailable(&self, reason: &str) -> BackendError {
        let at = self.socket.display();
        BackendError::Unavailable {
            reason: format!("{reason} ({at})"),
            hint: hint(&self.socket).to_owned(),
        }
    }

    fn set(&self, docker: Option<Docker>) {
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = docker;
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
