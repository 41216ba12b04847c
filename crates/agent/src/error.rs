use std::path::PathBuf;

/// Why the agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot read {}", path.display())]
    ReadConfig {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not a valid agent configuration", path.display())]
    ParseConfig {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("no disk labelled CIDATA with this VPS's settings appeared within {seconds} s")]
    NoSeed { seconds: u64 },
    #[error("cannot put the settings into {}", path.display())]
    CopySettings {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not valid", path.display())]
    Secret {
        path: PathBuf,
        #[source]
        source: kohakuriver_agent_protocol::proof::ParseSecretError,
    },
    #[error("cannot load the SSH host key {}", path.display())]
    HostKey {
        path: PathBuf,
        #[source]
        source: russh::keys::Error,
    },
    #[error("cannot listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the agent's runtime")]
    Runtime(#[source] std::io::Error),
    #[error("the SFTP stream failed")]
    Sftp(#[source] std::io::Error),
    #[error("the files stream failed")]
    Files(#[source] std::io::Error),
}
