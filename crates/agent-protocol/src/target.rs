use serde::{Deserialize, Serialize};

/// The target of a stream into an instance.
///
/// An agent lives as long as its instance, over many updates of host and runner: the spelling of
/// what exists stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "lowercase", deny_unknown_fields)]
pub enum StreamTarget {
    /// The agent's SSH server.
    Ssh,
    /// A TCP port on the instance's loopback.
    Tcp { port: u16 },
    /// A UDP port on the instance's loopback, for one flow.
    Udp { port: u16 },
    /// A program that the agent starts.
    Exec,
    /// A program that the container engine starts: works where the agent does not.
    Attach,
    /// The agent's terminal sessions.
    Session,
    /// Files: requests and answers, one after another.
    Files,
    /// News of changes below some directories.
    Watch,
    /// New settings for a guest's agent, up to the end of the runner's direction; answered with
    /// one more line. The host does not offer it to clients.
    Settings,
    /// No stream: the agent identifies itself and closes.
    Ping,
}

impl StreamTarget {
    /// Returns the name used in messages to users.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ssh => "SSH",
            Self::Tcp { .. } => "TCP",
            Self::Udp { .. } => "UDP",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Session => "terminal",
            Self::Files => "files",
            Self::Watch => "watch",
            Self::Settings => "settings",
            Self::Ping => "ping",
        }
    }
}
