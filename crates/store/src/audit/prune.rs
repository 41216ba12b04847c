//! Removes the oldest entries of the audit log, for their age or for the log's size.
//!
//! Each removal is itself an entry that names the last removed entry and its hash: the log states
//! where it begins and why, and a hash noted elsewhere before the removal can be compared.

use sqlx::{Row, SqliteConnection};

use super::{NewAudit, append, read_audit, state};
use crate::{Store, StoreError};

/// Entries removed per transaction: the writer is busy for some tens of milliseconds.
const AT_ONCE: i64 = 10_000;
const ACTION: &str = "audit.prune";

/// The limits of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditLimits {
    pub max_age_ms: i64,
    /// Estimated size in the database.
    pub max_bytes: i64,
}

impl Default for AuditLimits {
    /// Two years, 1 GiB.
    fn default() -> Self {
        Self { max_age_ms: 730 * 24 * 3600 * 1000, max_bytes: 1 << 30 }
    }
}

impl Store {
    /// Removes entries beyond the limits. Returns their number.
    pub async fn prune_audit(&self, limits: AuditLimits, now_ms: i64) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let mut tx = self.begin().await?;
            let done = remove_some(&mut tx, limits, now_ms).await?;
            tx.commit().await?;
            removed += done;
            if done < AT_ONCE.unsigned_abs() {
                return Ok(removed);
            }
        }
    }
}

async fn remove_some(
    tx: &mut SqliteConnection,
    limits: AuditLimits,
    now_ms: i64,
) -> Result<u64, StoreError> {
    let before = state(tx).await?;
    let sql = "SELECT * FROM audit ORDER BY seq LIMIT $1";
    let oldest = sqlx::query(sql).bind(AT_ONCE).fetch_all(&mut *tx).await?;
    let mut after = before.clone();
    for row in &oldest {
        let row = read_audit(row)?;
        let old = row.entry.at_ms < now_ms - limits.max_age_ms;
        if !old && after.bytes <= limits.max_bytes {
            break;
        }
        after.bytes -= row.entry.bytes();
        (after.pruned_seq, after.pruned_hash) = (row.seq, row.hash);
    }
    let removed = after.pruned_seq - before.pruned_seq;
    if removed == 0 {
        return Ok(0);
    }
    // First, so that the log always has an entry to continue from.
    append(tx, &[entry(after.pruned_seq, &after.pruned_hash, now_ms)]).await?;
    sqlx::query("DELETE FROM audit WHERE seq <= $1")
        .bind(after.pruned_seq)
        .execute(&mut *tx)
        .await?;
    let sql = "UPDATE audit_state SET pruned_seq = $1, pruned_hash = $2, bytes = bytes - $3";
    sqlx::query(sql)
        .bind(after.pruned_seq)
        .bind(&after.pruned_hash)
        .bind(before.bytes - after.bytes)
        .execute(&mut *tx)
        .await?;
    Ok(removed.unsigned_abs())
}

fn entry(seq: i64, hash: &str, now_ms: i64) -> NewAudit {
    NewAudit {
        at_ms: now_ms,
        actor: "host".to_owned(),
        actor_id: None,
        address: String::new(),
        action: ACTION.to_owned(),
        object: object(seq),
        result: "ok".to_owned(),
        detail: detail(hash),
    }
}

fn object(seq: i64) -> String {
    format!("entries to {seq}")
}

fn detail(hash: &str) -> String {
    format!("the last one removed has the hash {hash}")
}

/// Checks whether an entry records a removal up to this entry.
pub(super) fn explains(entry: &NewAudit, seq: i64, hash: &str) -> bool {
    entry.action == ACTION && entry.object == object(seq) && entry.detail == detail(hash)
}

/// Returns the size of the log as it is counted, for tests.
impl Store {
    #[doc(hidden)]
    pub async fn audit_bytes(&self) -> Result<i64, StoreError> {
        let row = sqlx::query("SELECT bytes FROM audit_state").fetch_one(&self.readers).await?;
        Ok(row.try_get("bytes")?)
    }
}
