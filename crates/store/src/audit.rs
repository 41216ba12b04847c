//! The audit log: an append-only list of acts, each entry's hash covering the entry before it.
//! Changing or removing an entry invalidates every later hash, and cannot reproduce a hash that
//! was noted elsewhere.
//!
//! Old entries are removed at the front ([`prune`]); the hash of the last one removed is kept and
//! is written into the log itself, so that the rest stays verifiable. [`query`] finds pages.
//!
//! ```text
//!  removed ......... | kept ................................ | appended
//!          pruned_seq, pruned_hash <── hash <── hash <── hash
//! ```

mod prune;
mod query;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::{Store, StoreError};

pub use prune::AuditLimits;
pub use query::AuditFilter;

/// Entries read at once.
const PAGE: i64 = 1000;
/// Disk space of a row beside its texts: its numbers, its hash, its index entries.
const ROW_BYTES: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAudit {
    pub at_ms: i64,
    /// An account's name, or its stand-in: `anonymous`, `host`, `node NAME`.
    pub actor: String,
    pub actor_id: Option<i64>,
    /// The client's address; empty where there is none.
    pub address: String,
    /// For example `vps.stop`.
    pub action: String,
    /// The object of the action.
    pub object: String,
    /// `ok`, or the error's code.
    pub result: String,
    pub detail: String,
}

impl NewAudit {
    /// Estimates its size in the database.
    fn bytes(&self) -> i64 {
        let texts =
            [&self.actor, &self.address, &self.action, &self.object, &self.result, &self.detail];
        let bytes = ROW_BYTES + texts.iter().map(|text| text.len()).sum::<usize>();
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub seq: i64,
    pub entry: NewAudit,
    pub hash: String,
}

/// The result of verifying the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// All entries are as they were written.
    Intact {
        /// Entries present.
        entries: u64,
        /// Entries removed for their age or for the log's size.
        pruned: u64,
        /// The hash of the last entry; empty in an empty log.
        last: String,
    },
    /// The first entry that is not.
    Broken { seq: i64 },
}

/// The start of the retained log, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    pruned_seq: i64,
    pruned_hash: String,
    bytes: i64,
}

impl Store {
    /// Appends entries, all or none.
    pub async fn append_audit(&self, entries: &[NewAudit]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        append(&mut tx, entries).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Returns the next entries after `seq`, oldest first, to read all of them.
    pub async fn audit_after(&self, seq: i64) -> Result<Vec<AuditRow>, StoreError> {
        page_after(&mut *self.readers.acquire().await?, seq).await
    }

    /// Verifies every entry against the one before it, a page at a time, in one snapshot of the
    /// database: concurrent appends and removals do not disturb it.
    pub async fn verify_audit(&self) -> Result<Verified, StoreError> {
        let mut view = self.readers.begin().await?;
        let state = state(&mut view).await?;
        let (mut seq, mut last) = (state.pruned_seq, state.pruned_hash.clone());
        // Removing the oldest entries undetected would require an entry that says so.
        let mut explained = state.pruned_seq == 0;
        loop {
            let page = page_after(&mut view, seq).await?;
            if page.is_empty() && explained {
                let entries = (seq - state.pruned_seq).unsigned_abs();
                let pruned = state.pruned_seq.unsigned_abs();
                return Ok(Verified::Intact { entries, pruned, last });
            }
            if page.is_empty() {
                return Ok(Verified::Broken { seq: state.pruned_seq + 1 });
            }
            for row in page {
                if row.seq != seq + 1 || row.hash != chain(&last, row.seq, &row.entry) {
                    return Ok(Verified::Broken { seq: row.seq });
                }
                explained |= prune::explains(&row.entry, state.pruned_seq, &state.pruned_hash);
                (seq, last) = (row.seq, row.hash);
            }
        }
    }
}

async fn page_after(view: &mut SqliteConnection, seq: i64) -> Result<Vec<AuditRow>, StoreError> {
    let sql = "SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows = sqlx::query(sql).bind(seq).bind(PAGE).fetch_all(view).await?;
    rows.iter().map(read_audit).collect()
}

async fn state(view: &mut SqliteConnection) -> Result<State, StoreError> {
    let row = sqlx::query("SELECT * FROM audit_state").fetch_one(view).await?;
    Ok(State {
        pruned_seq: row.try_get("pruned_seq")?,
        pruned_hash: row.try_get("pruned_hash")?,
        bytes: row.try_get("bytes")?,
    })
}

/// Appends entries in a transaction that holds the write lock.
pub(crate) async fn append(
    tx: &mut SqliteConnection,
    entries: &[NewAudit],
) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *tx)
        .await?;
    let (mut seq, mut hash) = match last {
        Some(row) => (row.try_get("seq")?, row.try_get("hash")?),
        None => {
            let state = state(tx).await?;
            (state.pruned_seq, state.pruned_hash)
        }
    };
    for entry in entries {
        seq += 1;
        hash = chain(&hash, seq, entry);
        let sql = "INSERT INTO audit (seq, at_ms, actor, actor_id, address, action, object,
            result, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        sqlx::query(sql)
            .bind(seq)
            .bind(entry.at_ms)
            .bind(&entry.actor)
            .bind(entry.actor_id)
            .bind(&entry.address)
            .bind(&entry.action)
            .bind(&entry.object)
            .bind(&entry.result)
            .bind(&entry.detail)
            .bind(&hash)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query("UPDATE audit_state SET bytes = bytes + $1")
        .bind(entries.iter().map(NewAudit::bytes).sum::<i64>())
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Each field with its length before it, so that no two entries encode alike.
fn chain(before: &str, seq: i64, entry: &NewAudit) -> String {
    let mut hash = Sha256::new();
    let numbers = [seq, entry.at_ms, entry.actor_id.unwrap_or(-1)].map(|n| n.to_string());
    let texts = [
        before,
        &numbers[0],
        &numbers[1],
        &numbers[2],
        &entry.actor,
        &entry.address,
        &entry.action,
        &entry.object,
        &entry.result,
        &entry.detail,
    ];
    for text in texts {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    HEXLOWER.encode(&hash.finalize())
}

fn read_audit(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    let entry = NewAudit {
        at_ms: row.try_get("at_ms")?,
        actor: row.try_get("actor")?,
        actor_id: row.try_get("actor_id")?,
        address: row.try_get("address")?,
        action: row.try_get("action")?,
        object: row.try_get("object")?,
        result: row.try_get("result")?,
        detail: row.try_get("detail")?,
    };
    Ok(AuditRow { seq: row.try_get("seq")?, entry, hash: row.try_get("hash")? })
}
