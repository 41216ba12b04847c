//! The routes of VPSes and their snapshots. References and snapshot names are validated where they
//! are parsed, so they are safe in a path.

use std::time::Duration;

use kohakuriver_api::{
    CreateVps, CreatedVps, Event, Message, SnapshotCreated, SnapshotList, SnapshotsDeleted, SshKey,
    Task, UpdateVps,
};
use reqwest::Method;

use super::{Api, Call};
use crate::error::CommandError;

/// How long one long poll may stay open; the host allows at most 30 seconds.
const POLL_SECONDS: u64 = 25;

impl Api {
    pub async fn vps_all(&self) -> Result<Vec<Task>, CommandError> {
        self.get("/api/vps").await
    }

    pub async fn vps_active(&self) -> Result<Vec<Task>, CommandError> {
        self.get("/api/vps/status").await
    }

    pub async fn task(&self, reference: &str) -> Result<Task, CommandError> {
        self.get(&format!("/api/status/{reference}")).await
    }

    /// Returns a task as [`Self::task`] does, for a command that opens a session in it. The plain
    /// name of another account's VPS is refused: text that is typed or copied there is for the
    /// user's own VPS.
    pub async fn task_to_enter(&self, reference: &str) -> Result<Task, CommandError> {
        let task = self.task(reference).await?;
        let is_id = reference.bytes().all(|b| b.is_ascii_digit());
        let is_named = is_id
            || task.reference.is_empty()
            || task.reference.eq_ignore_ascii_case(reference)
            || reference.contains('.');
        if is_named {
            return Ok(task);
        }
        let owner = task.owner_username.as_deref().unwrap_or("another account");
        Err(CommandError::request(format!("VPS '{reference}' is not yours, but of {owner}"))
            .hint(format!("name it {}, or by its id", task.reference)))
    }

    /// Waits for a revision after `since`, or returns the same one after the poll's timeout.
    pub async fn task_after(&self, reference: &str, since: u64) -> Result<Task, CommandError> {
        let query = [("since", since.to_string()), ("timeout", POLL_SECONDS.to_string())];
        let path = format!("/api/status/{reference}");
        let limit = Some(Duration::from_secs(POLL_SECONDS + 10));
        self.send(Call { query: &query, limit, ..Call::new(Method::GET, &path) }).await
    }

    pub async fn create_vps(&self, body: &CreateVps) -> Result<CreatedVps, CommandError> {
        let query = [("wait", "false".to_owned())];
        let call = Call::with_body(Method::POST, "/api/vps/create", body);
        self.send(Call { query: &query, ..call }).await
    }

    pub async fn stop_vps(&self, id: &str) -> Result<Message, CommandError> {
        self.post(&format!("/api/vps/stop/{id}")).await
    }

    pub async fn kill_vps(&self, id: &str) -> Result<Message, CommandError> {
        self.post(&format!("/api/kill/{id}")).await
    }

    pub async fn pause_vps(&self, id: &str) -> Result<Message, CommandError> {
        self.post(&format!("/api/vps/pause/{id}")).await
    }

    pub async fn resume_vps(&self, id: &str) -> Result<Message, CommandError> {
        self.post(&format!("/api/vps/resume/{id}")).await
    }

    pub async fn restart_vps(
        &self,
        id: &str,
        snapshot: Option<&str>,
    ) -> Result<Message, CommandError> {
        let path = format!("/api/vps/restart/{id}");
        let query: Vec<_> =
            snapshot.map(|which| ("from_snapshot", which.to_owned())).into_iter().collect();
        self.send(Call { query: &query, ..Call::new(Method::POST, &path) }).await
    }

    pub async fn update_vps(&self, id: &str, body: &UpdateVps) -> Result<Message, CommandError> {
        self.send(Call::with_body(Method::PATCH, &format!("/api/vps/{id}"), body)).await
    }

    pub async fn delete_vps(&self, id: &str, force: bool) -> Result<Message, CommandError> {
        self.delete(&format!("/api/vps/{id}"), force).await
    }

    pub async fn ssh_keys(&self, reference: &str) -> Result<Vec<SshKey>, CommandError> {
        self.get(&format!("/api/vps/{reference}/keys")).await
    }

    /// Returns the newest `limit` events, oldest first.
    pub async fn events(&self, reference: &str, limit: u32) -> Result<Vec<Event>, CommandError> {
        let query = [("limit", limit.to_string())];
        let path = format!("/api/vps/{reference}/events");
        self.send(Call { query: &query, ..Call::new(Method::GET, &path) }).await
    }

    /// Returns snapshots, newest first.
    pub async fn snapshots(&self, reference: &str) -> Result<SnapshotList, CommandError> {
        self.get(&format!("/api/vps/snapshots/{reference}")).await
    }

    /// Creates a snapshot and waits for it: a large disk takes many minutes.
    pub async fn create_snapshot(
        &self,
        id: &str,
        name: Option<&str>,
        message: Option<&str>,
    ) -> Result<SnapshotCreated, CommandError> {
        let path = format!("/api/vps/snapshots/{id}");
        let query: Vec<_> = [("name", name), ("message", message)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?.to_owned())))
            .collect();
        self.send(Call { query: &query, limit: None, ..Call::new(Method::POST, &path) }).await
    }

    pub async fn restore_snapshot(&self, id: &str, which: &str) -> Result<Message, CommandError> {
        self.post(&format!("/api/vps/snapshots/{id}/{which}/restore")).await
    }

    /// Deletes a snapshot. Removing layers of a large disk takes long.
    pub async fn delete_snapshot(
        &self,
        id: &str,
        which: &str,
    ) -> Result<SnapshotsDeleted, CommandError> {
        let path = format!("/api/vps/snapshots/{id}/{which}");
        self.send(Call { limit: None, ..Call::new(Method::DELETE, &path) }).await
    }

    pub async fn delete_snapshots(&self, id: &str) -> Result<SnapshotsDeleted, CommandError> {
        let path = format!("/api/vps/snapshots/{id}");
        self.send(Call { limit: None, ..Call::new(Method::DELETE, &path) }).await
    }
}
