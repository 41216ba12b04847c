//! Requests for instances, which an operator decides on.
//!
//! ```text
//!  pending --approved--> an instance of the same id (the row stays: approver and time)
//!  pending --rejected, or expired--> rejected (until its owner deletes it)
//!  pending --withdrawn--> gone
//! ```
//!
//! A request holds nothing: its resources are allocated in the transaction that approves it.

use kohakuriver_model::{InstanceId, InstanceName, UserId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::instances::{CreateError, next_id};
use crate::{Store, StoreError};

/// Pending requests per account.
const MOST_PENDING: i64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    Pending,
    Approved,
    Rejected,
}

impl RequestState {
    fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

#[derive(Clone, Debug)]
pub struct RequestRow {
    pub id: InstanceId,
    pub owner: UserId,
    pub owner_name: String,
    /// The request body, as it was sent.
    pub request_json: String,
    pub state: RequestState,
    pub created_ms: i64,
    pub decided_ms: Option<i64>,
    pub decided_by: Option<String>,
    pub decided_by_id: Option<i64>,
    pub reason: Option<String>,
    pub revision: u64,
}

#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Derived from the clock; the store increases it if it was used before.
    pub id: InstanceId,
    pub owner: UserId,
    pub name: Option<InstanceName>,
    pub request_json: String,
}

/// The approver of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub by: String,
    pub by_id: Option<i64>,
}

/// Whether and how the creation of an instance is approved.
#[derive(Clone, Debug, Default)]
pub enum Consent {
    /// The creator needs no approval.
    #[default]
    NotNeeded,
    /// Approves this request, which must be pending and unchanged since it was read.
    Request { id: InstanceId, revision: u64, decision: Decision },
    /// Approved at once by a rule; the body is stored as a request's would be.
    Rule { decision: Decision, request_json: String },
}

const SELECT: &str = "SELECT r.*, u.username AS owner_name FROM requests r
    JOIN users u ON u.id = r.owner_id";

impl Store {
    /// Lists pending and rejected requests, newest first.
    pub async fn list_requests(&self) -> Result<Vec<RequestRow>, StoreError> {
        let sql =
            sqlx::AssertSqlSafe(format!("{SELECT} WHERE r.state <> 'approved' ORDER BY r.id DESC"));
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(read_request).collect()
    }

    /// Returns a request that is not an instance yet.
    pub async fn lookup_request(&self, id: InstanceId) -> Result<Option<RequestRow>, StoreError> {
        let sql =
            sqlx::AssertSqlSafe(format!("{SELECT} WHERE r.id = $1 AND r.state <> 'approved'"));
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_request).transpose()
    }

    pub async fn create_request(
        &self,
        new: NewRequest,
        now_ms: i64,
    ) -> Result<RequestRow, CreateError> {
        let mut tx = self.begin().await?;
        let waiting: i64 = sqlx::query(
            "SELECT COUNT(*) AS n FROM requests WHERE owner_id = $1 AND state = 'pending'",
        )
        .bind(new.owner.0)
        .fetch_one(&mut *tx)
        .await?
        .try_get("n")?;
        if waiting >= MOST_PENDING {
            return Err(CreateError::TooManyRequests);
        }
        if let Some(name) = &new.name {
            crate::instances::require_free_name(&mut tx, Some(new.owner), name, None).await?;
        }
        let id = next_id(&mut tx, new.id).await?;
        let sql = "INSERT INTO requests (id, owner_id, label, wish, state, created_ms)
            VALUES ($1, $2, $3, $4, 'pending', $5)";
        sqlx::query(sql)
            .bind(id.as_i64())
            .bind(new.owner.0)
            .bind(new.name.as_ref().map(InstanceName::as_str))
            .bind(new.request_json)
            .bind(now_ms)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        let made = self.lookup_request(id).await?;
        Ok(made.ok_or(StoreError::NotFound { what: "row that was just written".to_owned() })?)
    }

    /// Rejects a pending request. Returns false where it is not pending.
    pub async fn reject_request(
        &self,
        id: InstanceId,
        decision: &Decision,
        reason: Option<&str>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE requests SET state = 'rejected', decided_ms = $2, decided_by = $3,
            decided_by_id = $4, reason = $5, revision = revision + 1
            WHERE id = $1 AND state = 'pending'";
        let done = sqlx::query(sql)
            .bind(id.as_i64())
            .bind(now_ms)
            .bind(&decision.by)
            .bind(decision.by_id)
            .bind(reason)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Withdraws a pending request, or removes a rejected one. Returns false where it is neither.
    pub async fn delete_request(&self, id: InstanceId) -> Result<bool, StoreError> {
        let sql = "DELETE FROM requests WHERE id = $1 AND state <> 'approved'";
        let done = sqlx::query(sql).bind(id.as_i64()).execute(&self.writer).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Rejects requests older than a time. Returns their number.
    pub async fn expire_requests(
        &self,
        before_ms: i64,
        reason: &str,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        let sql = "UPDATE requests SET state = 'rejected', decided_ms = $2, decided_by = 'host',
            reason = $3, revision = revision + 1 WHERE state = 'pending' AND created_ms < $1";
        let done = sqlx::query(sql)
            .bind(before_ms)
            .bind(now_ms)
            .bind(reason)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected())
    }
}

/// Records the approval, in the transaction that creates the instance. Returns `Ok(None)` where
/// none was needed: the caller chooses the id.
pub(crate) async fn consent(
    tx: &mut Transaction<'_, Sqlite>,
    consent: &Consent,
    now_ms: i64,
) -> Result<Option<InstanceId>, CreateError> {
    let Consent::Request { id, revision, decision } = consent else { return Ok(None) };
    let sql =
        "UPDATE requests SET state = $2, decided_ms = $3, decided_by = $4, decided_by_id = $5,
        revision = revision + 1 WHERE id = $1 AND state = 'pending' AND revision = $6";
    let done = sqlx::query(sql)
        .bind(id.as_i64())
        .bind(RequestState::Approved.word())
        .bind(now_ms)
        .bind(&decision.by)
        .bind(decision.by_id)
        .bind(*revision as i64)
        .execute(&mut **tx)
        .await?;
    if done.rows_affected() == 1 { Ok(Some(*id)) } else { Err(CreateError::Decided) }
}

/// Does the same as [`consent`] for a rule's approval.
pub(crate) async fn record_rule(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    owner: Option<UserId>,
    consent: &Consent,
    now_ms: i64,
) -> Result<(), StoreError> {
    let (Consent::Rule { decision, request_json }, Some(owner)) = (consent, owner) else {
        return Ok(());
    };
    let sql = "INSERT INTO requests (id, owner_id, wish, state, created_ms, decided_ms, decided_by,
        decided_by_id) VALUES ($1, $2, $3, 'approved', $4, $4, $5, $6)";
    sqlx::query(sql)
        .bind(id.as_i64())
        .bind(owner.0)
        .bind(request_json)
        .bind(now_ms)
        .bind(&decision.by)
        .bind(decision.by_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn read_request(row: &SqliteRow) -> Result<RequestRow, StoreError> {
    let state = match row.try_get::<String, _>("state")?.as_str() {
        "pending" => RequestState::Pending,
        "approved" => RequestState::Approved,
        "rejected" => RequestState::Rejected,
        _ => return Err(StoreError::Inconsistent { table: "requests", column: "state" }),
    };
    Ok(RequestRow {
        id: InstanceId::from_u64(row.try_get::<i64, _>("id")? as u64),
        owner: UserId(row.try_get("owner_id")?),
        owner_name: row.try_get("owner_name")?,
        request_json: row.try_get("wish")?,
        state,
        created_ms: row.try_get("created_ms")?,
        decided_ms: row.try_get("decided_ms")?,
        decided_by: row.try_get("decided_by")?,
        decided_by_id: row.try_get("decided_by_id")?,
        reason: row.try_get("reason")?,
        revision: row.try_get::<i64, _>("revision")? as u64,
    })
}
