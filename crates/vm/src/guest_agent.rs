//! QEMU's own guest agent, where a guest has it: asked to hold its filesystems still for a moment.
//!
//! Our agent does everything else. This one is the only program that can freeze filesystems from
//! inside in a way every distribution has packaged, and images come with it.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::command::GUEST_AGENT_SOCKET;
use crate::qmp::connect_when_there;

/// One that is there answers within milliseconds.
const SYNC_LIMIT: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const MAX_LINE: u64 = 64 << 10;

/// A guest agent that answers.
#[derive(Debug)]
pub struct GuestAgent(BufReader<UnixStream>);

impl GuestAgent {
    /// Holds the guest's filesystems still; `None` where there is nobody to ask. A snapshot is
    /// then what the disk is after pulling the plug, which journals get over.
    pub async fn freeze(run_dir: &Path) -> Option<Self> {
        let connected = timeout(SYNC_LIMIT, Self::connect(run_dir)).await;
        let mut agent = connected.ok()?.ok()?;
        match timeout(ANSWER_LIMIT, agent.ask("guest-fsfreeze-freeze", Value::Null)).await {
            Ok(Ok(_)) => Some(agent),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the guest's filesystems are not frozen");
                None
            }
            Err(_) => {
                // It may have frozen them and been too slow to say so.
                agent.thaw().await;
                None
            }
        }
    }

    /// Lets a guest's filesystems go on that somebody may have left frozen.
    pub async fn thaw_at(run_dir: &Path) {
        if let Ok(Ok(agent)) = timeout(SYNC_LIMIT, Self::connect(run_dir)).await {
            agent.thaw().await;
        }
    }

    /// Lets them go on.
    pub async fn thaw(mut self) {
        let thawed = timeout(ANSWER_LIMIT, self.ask("guest-fsfreeze-thaw", Value::Null)).await;
        match thawed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the guest's filesystems may be frozen"),
            Err(_) => tracing::warn!("the guest's filesystems may be frozen: no answer"),
        }
    }

    async fn connect(run_dir: &Path) -> io::Result<Self> {
        let stream = connect_when_there(run_dir, GUEST_AGENT_SOCKET).await?;
        let mut agent = Self(BufReader::new(stream));
        // What whoever spoke to it before was not there to hear comes first.
        let id: u32 = rand::random();
        let mut answer = agent.ask("guest-sync", json!({"id": id})).await?;
        while answer != json!(id) {
            answer = agent.hear().await?;
        }
        Ok(agent)
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut asked = json!({"execute": command});
        if !arguments.is_null() {
            asked["arguments"] = arguments;
        }
        self.0.write_all(format!("{asked}\n").as_bytes()).await?;
        self.hear().await
    }

    async fn hear(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if (&mut self.0).take(MAX_LINE).read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut answer: Value = serde_json::from_str(&line)?;
        match answer.get_mut("return") {
            Some(result) => Ok(result.take()),
            None => Err(io::Error::other(answer["error"]["desc"].to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn filesystems_are_frozen_and_thawed_where_somebody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(GUEST_AGENT_SOCKET)).unwrap();
        let guest = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            let mut heard = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                let asked: Value = serde_json::from_str(&line).unwrap();
                heard.push(asked["execute"].as_str().unwrap().to_owned());
                let answer = json!({"return": asked["arguments"]["id"]});
                write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
            heard
        });
        GuestAgent::freeze(dir.path()).await.unwrap().thaw().await;
        let heard = guest.await.unwrap();
        assert_eq!(heard, ["guest-sync", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]);
    }

    #[tokio::test]
    async fn a_guest_without_one_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join(GUEST_AGENT_SOCKET)).unwrap();
        assert!(GuestAgent::freeze(dir.path()).await.is_none());
    }
}
