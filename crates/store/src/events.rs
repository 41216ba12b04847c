//! The events of each instance, with their actors.
//!
//! An event is written in the transaction of its change. Events outlive their instance, so that its
//! deletion has an actor. They are bounded: in length, in number for each instance, in number over
//! all, and in age.

use kohakuriver_model::InstanceId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::{Store, StoreError};

/// More would come from a runaway script.
const KEPT_PER_INSTANCE: i64 = 1000;
/// A longer detail is truncated: it is a sentence for display, not the request.
const LONGEST_DETAIL: usize = 1000;
/// How long an expired join token is retained.
const TOKENS_KEPT_MS: i64 = 90 * 24 * 3600 * 1000;

/// The retention limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLimits {
    pub max_age_ms: i64,
    /// Over all instances. Events of deleted instances are removed first.
    pub max_rows: u32,
}

impl Default for EventLimits {
    /// 90 days, half a million events.
    fn default() -> Self {
        Self { max_age_ms: 90 * 24 * 3600 * 1000, max_rows: 500_000 }
    }
}

/// An event to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// An identifier such as `stop`, `running` or `lost`.
    pub kind: &'static str,
    /// The actor: an account as far as known, `node NAME`, or `host`.
    pub actor: String,
    /// A sentence for display; may be empty.
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    pub id: i64,
    pub instance: InstanceId,
    pub at_ms: i64,
    pub kind: String,
    pub actor: String,
    pub detail: String,
}

impl Store {
    /// Returns the newest `limit` events of an instance, also of a deleted one, oldest first.
    pub async fn list_events(
        &self,
        id: InstanceId,
        limit: u32,
    ) -> Result<Vec<EventRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM (SELECT * FROM events WHERE instance_id = $1 ORDER BY id DESC LIMIT $2)
             ORDER BY id",
        )
        .bind(id.as_i64())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_event).collect()
    }

    /// Records an event without a change of the row, such as a node falling silent.
    pub async fn record_event(
        &self,
        id: InstanceId,
        event: &NewEvent,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        insert_event(&mut tx, id, event, now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Finds the last instance whose id starts with a text, for events of deleted instances.
    pub async fn resolve_event_instance(
        &self,
        text: &str,
    ) -> Result<Option<InstanceId>, StoreError> {
        let Ok(id) = text.parse::<InstanceId>() else {
            return Ok(None);
        };
        let known = sqlx::query("SELECT 1 FROM events WHERE instance_id = $1 LIMIT 1")
            .bind(id.as_i64())
            .fetch_optional(&self.readers)
            .await?;
        Ok(known.map(|_| id))
    }

    /// Removes events beyond the limits, and join tokens that expired long ago. Returns the number
    /// of removed events.
    pub async fn prune(&self, limits: EventLimits, now_ms: i64) -> Result<u64, StoreError> {
        sqlx::query("DELETE FROM join_tokens WHERE expires_ms < $1")
            .bind(now_ms - TOKENS_KEPT_MS)
            .execute(&self.writer)
            .await?;
        let sql = "DELETE FROM events WHERE at_ms < $1";
        let old = sqlx::query(sql).bind(now_ms - limits.max_age_ms).execute(&self.writer).await?;
        let sql = "DELETE FROM events WHERE id IN (
            SELECT e.id FROM events e LEFT JOIN instances i ON i.id = e.instance_id
            ORDER BY i.id IS NOT NULL, e.id
            LIMIT max(0, (SELECT count(*) FROM events) - $1))";
        let many = sqlx::query(sql).bind(limits.max_rows).execute(&self.writer).await?;
        Ok(old.rows_affected() + many.rows_affected())
    }
}

pub(crate) async fn insert_event(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    event: &NewEvent,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO events (instance_id, at_ms, kind, actor, detail) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.as_i64())
    .bind(now_ms)
    .bind(event.kind)
    .bind(&event.actor)
    .bind(bounded(&event.detail))
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM events WHERE instance_id = $1 AND id <= (SELECT id FROM events
         WHERE instance_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(id.as_i64())
    .bind(KEPT_PER_INSTANCE)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn bounded(detail: &str) -> &str {
    &detail[..detail.floor_char_boundary(LONGEST_DETAIL)]
}

fn read_event(row: &SqliteRow) -> Result<EventRow, StoreError> {
    Ok(EventRow {
        id: row.try_get("id")?,
        instance: InstanceId::from_u64(row.try_get::<i64, _>("instance_id")? as u64),
        at_ms: row.try_get("at_ms")?,
        kind: row.try_get("kind")?,
        actor: row.try_get("actor")?,
        detail: row.try_get("detail")?,
    })
}
