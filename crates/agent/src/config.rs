use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::AgentError;

/// The file, inside the configuration directory, that holds an [`AgentConfig`] as JSON.
pub const CONFIG_FILE: &str = "agent.json";
/// The file, inside the configuration directory, that holds the instance's SSH host key (OpenSSH PEM).
pub const HOST_KEY_FILE: &str = "ssh_host_ed25519_key";
/// The unix socket, inside the run directory, that the agent listens on.
pub const SOCKET_FILE: &str = "agent.sock";

/// A configuration holds keys and an environment: a larger file is a mistake, not a configuration.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// The settings that the runner gives the agent for its instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    pub task_id: String,
    pub hostname: String,
    /// Whether the instance was created with SSH access.
    pub ssh: bool,
    /// OpenSSH public key lines that may log in as any user of the image, and the line of the signer whose
    /// certificates may; read again at every login.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// Variables that every session gets, over those of the container.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether to serve SSH on TCP port 22 of the instance too, where the image does not.
    #[serde(default)]
    pub serve_port_22: bool,
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may hold secrets: its names only.
        f.debug_struct("AgentConfig")
            .field("task_id", &self.task_id)
            .field("hostname", &self.hostname)
            .field("ssh", &self.ssh)
            .field("authorized_keys", &self.authorized_keys.len())
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("serve_port_22", &self.serve_port_22)
            .finish()
    }
}

impl AgentConfig {
    /// Reads the configuration from the directory the runner mounted.
    pub fn read(config_dir: &Path) -> Result<Self, AgentError> {
        let path = config_dir.join(CONFIG_FILE);
        let mut text = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut text))
            .map_err(|source| AgentError::ReadConfig { path: path.clone(), source })?;
        serde_json::from_slice(&text).map_err(|source| AgentError::ParseConfig { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_environment_values() {
        let config = AgentConfig {
            task_id: "1".into(),
            hostname: "h".into(),
            ssh: true,
            authorized_keys: vec![],
            env: BTreeMap::from([("TOKEN".into(), "s3cret".into())]),
            serve_port_22: false,
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("s3cret"));
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"task_id":"1","hostname":"h","ssh":true,"sssh":false}"#;
        assert!(serde_json::from_str::<AgentConfig>(text).is_err());
    }
}
