//! New settings for a guest that runs: the runner cannot write its files.

use std::path::Path;
use std::time::Duration;

use kohakuriver_agent_protocol::{StreamReply, write_reply};
use kohakuriver_net::Socket;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::config::{AgentConfig, CONFIG_FILE, MAX_CONFIG_BYTES};
use crate::serve::refuse;

const LIMIT: Duration = Duration::from_secs(10);

/// Takes the settings that the stream carries up to its end, and says whether they are in place.
/// Keys count from the next login on.
pub(crate) async fn receive(mut stream: Socket, config_dir: &Path) {
    if write_reply(&mut stream, &StreamReply::Ready).await.is_err() {
        return;
    }
    let mut text = Vec::new();
    // One byte more than may be: what is cut would not be noticed otherwise.
    let mut bounded = (&mut stream).take(MAX_CONFIG_BYTES + 1);
    if !matches!(timeout(LIMIT, bounded.read_to_end(&mut text)).await, Ok(Ok(_))) {
        return;
    }
    match put(&text, config_dir) {
        Ok(()) => {
            tracing::info!("new settings");
            let _ = write_reply(&mut stream, &StreamReply::Ready).await;
        }
        Err(error) => refuse(&mut stream, error).await,
    }
}

fn put(text: &[u8], config_dir: &Path) -> Result<(), String> {
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(format!("settings are longer than {MAX_CONFIG_BYTES} bytes"));
    }
    let new: AgentConfig = serde_json::from_slice(text)
        .map_err(|error| format!("these settings are not understood: {error}"))?;
    let old = AgentConfig::read(config_dir).map_err(|error| error.to_string())?;
    if new.task_id != old.task_id {
        return Err(format!("these are the settings of {}, this is {}", new.task_id, old.task_id));
    }
    kohakuriver_durable::write(&config_dir.join(CONFIG_FILE), text, 0o600)
        .map_err(|error| format!("the settings cannot be written in the VPS: {error}"))
}
