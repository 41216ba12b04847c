//! Who did what: a list that only grows, each entry's hash covering the one before it. Whoever
//! changes or takes out an entry must make all later ones anew, and cannot make the hash that
//! somebody else has noted.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::{Store, StoreError};

/// How many entries are read at once.
const PAGE: i64 = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAudit {
    pub at_ms: i64,
    /// An account's name, or what stands for one: `anonymous`, `host`, `node NAME`.
    pub actor: String,
    pub actor_id: Option<i64>,
    /// Where they came from; empty where that has no meaning.
    pub address: String,
    /// Such as `vps.stop`.
    pub action: String,
    /// What it was done to.
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub result: String,
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    pub seq: i64,
    pub entry: NewAudit,
    pub hash: String,
}

/// Which entries to show. Empty fields ask for nothing.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub actor: Option<String>,
    /// The whole action, or what it begins with.
    pub action: Option<String>,
    pub object: Option<String>,
    /// Only older ones than this.
    pub before: Option<i64>,
    /// Only newer ones than this, oldest first.
    pub after: Option<i64>,
    pub since_ms: Option<i64>,
    pub limit: u32,
}

/// What checking the chain found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// All entries are as they were written; the hash of the last.
    Intact { entries: u64, last: String },
    /// The first entry that is not.
    Broken { seq: i64 },
}

impl Store {
    /// Writes entries behind the last one, all or none.
    pub async fn append_audit(&self, entries: &[NewAudit]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        append(&mut tx, entries).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Newest first, unless `after` asks for what follows.
    pub async fn list_audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let sql = "SELECT * FROM audit WHERE ifnull(actor = $1, 1)
            AND ifnull(action = $2 OR substr(action, 1, length($2) + 1) = $2 || '.', 1)
            AND ifnull(object = $3, 1) AND ifnull(seq < $4, 1) AND ifnull(at_ms >= $5, 1)
            AND ifnull(seq > $6, 1) ORDER BY iif($6 IS NULL, -seq, seq) LIMIT $7";
        let rows = sqlx::query(sql)
            .bind(&filter.actor)
            .bind(&filter.action)
            .bind(&filter.object)
            .bind(filter.before)
            .bind(filter.since_ms)
            .bind(filter.after)
            .bind(i64::from(filter.limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_audit).collect()
    }

    /// The next entries after `seq`, oldest first; for reading all of them.
    pub async fn audit_after(&self, seq: i64) -> Result<Vec<AuditRow>, StoreError> {
        let sql = "SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
        let rows = sqlx::query(sql).bind(seq).bind(PAGE).fetch_all(&self.readers).await?;
        rows.iter().map(read_audit).collect()
    }

    /// Goes through all entries, a page at a time.
    pub async fn verify_audit(&self) -> Result<Verified, StoreError> {
        let (mut seq, mut last) = (0, String::new());
        loop {
            let page = self.audit_after(seq).await?;
            if page.is_empty() {
                return Ok(Verified::Intact { entries: seq.unsigned_abs(), last });
            }
            for row in page {
                if row.seq != seq + 1 || row.hash != chain(&last, row.seq, &row.entry) {
                    return Ok(Verified::Broken { seq: row.seq });
                }
                (seq, last) = (row.seq, row.hash);
            }
        }
    }
}

/// Writes entries behind the last one, in a transaction that holds the write lock.
pub(crate) async fn append(
    tx: &mut SqliteConnection,
    entries: &[NewAudit],
) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *tx)
        .await?;
    let (mut seq, mut hash) = match last {
        Some(row) => (row.try_get("seq")?, row.try_get("hash")?),
        None => (0, String::new()),
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
    Ok(())
}

/// Each field with its length before it, so that no two entries have the same text.
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
