//! Instances offered to another account.
//!
//! ```text
//!  owned by A --offered to B--> still owned by A, in A's quota --taken--> owned by B
//!                               \--declined, withdrawn, or expired--> as before
//! ```
//!
//! An offer needs nothing of the receiver and reveals nothing about it: the receiver's names and
//! quota are checked when it takes the offer, in the transaction that moves the instance.

use kohakuriver_model::{Holdings, InstanceId, InstanceName, InstanceSpec, OverQuota, UserId};
use sqlx::{Row, Sqlite, Transaction};

use crate::events::{NewEvent, insert_event};
use crate::instances::{CreateError, require_free_name};
use crate::quota::{check_quota, move_gpu_time};
use crate::shares::{Giver, require_giver, touch};
use crate::{Store, StoreError};

/// How long an offer is open.
const STANDS_MS: i64 = 14 * 24 * 3600 * 1000;
/// Open offers per giver and per receiver.
const MOST_MADE: i64 = 50;
const MOST_WAITING: i64 = 200;

/// An open offer.
#[derive(Clone, Debug)]
pub struct OfferRow {
    pub id: InstanceId,
    pub spec: InstanceSpec,
    /// `None`: no owner.
    pub owner: Option<String>,
    /// The receiver's name.
    pub to: String,
    /// The account that made it; empty on a host without login.
    pub made_by: String,
    pub created_ms: i64,
    pub expires_ms: i64,
}

/// The reason why an offer was not made, taken or ended.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It was given away, or deleted, since the caller was authorized.
    #[error("the VPS is no longer yours")]
    NotYours,
    #[error("the VPS already belongs to this account")]
    TheirsAlready,
    #[error("too many offers are waiting for an answer")]
    TooMany,
    /// The account has no such offer, or it has expired.
    #[error("there is no such offer")]
    NoOffer,
    #[error("the VPS is being deleted")]
    Leaving,
    /// The receiver has another of this name.
    #[error("you already have a VPS named '{0}'")]
    NameTaken(InstanceName),
    #[error(transparent)]
    OverQuota(OverQuota),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for OfferError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// An offer counts while it is open, its maker's account is active, and the instance exists.
const STANDING: &str = "o.expires_ms > $1 AND i.desired <> 'deleted'
    AND (o.made_by_id IS NULL OR m.is_active = 1)";

impl Store {
    /// Lists an account's open offers, newest first.
    pub async fn offers_to(&self, user: UserId, now_ms: i64) -> Result<Vec<OfferRow>, StoreError> {
        self.offers("o.to_id = $2", user.0, now_ms).await
    }

    /// Returns an instance's open offer.
    pub async fn offer_of(
        &self,
        id: InstanceId,
        now_ms: i64,
    ) -> Result<Option<OfferRow>, StoreError> {
        Ok(self.offers("o.instance_id = $2", id.as_i64(), now_ms).await?.pop())
    }

    async fn offers(
        &self,
        which: &'static str,
        value: i64,
        now_ms: i64,
    ) -> Result<Vec<OfferRow>, StoreError> {
        let sql = format!(
            "SELECT o.*, i.spec, w.username AS owner, t.username AS to_name,
             m.username AS maker FROM offers o
             JOIN instances i ON i.id = o.instance_id JOIN users t ON t.id = o.to_id
             LEFT JOIN users w ON w.id = i.owner_id LEFT JOIN users m ON m.id = o.made_by_id
             WHERE {STANDING} AND {which} ORDER BY o.instance_id DESC"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(now_ms).bind(value);
        let read = |row: &sqlx::sqlite::SqliteRow| {
            Ok(OfferRow {
                id: InstanceId::from_u64(row.try_get::<i64, _>("instance_id")? as u64),
                spec: read_spec(row)?,
                owner: row.try_get("owner")?,
                to: row.try_get("to_name")?,
                made_by: row.try_get::<Option<String>, _>("maker")?.unwrap_or_default(),
                created_ms: row.try_get("created_ms")?,
                expires_ms: row.try_get("expires_ms")?,
            })
        };
        query.fetch_all(&self.readers).await?.iter().map(read).collect()
    }

    /// Offers an instance to an account, replacing an earlier offer of it.
    ///
    /// # Errors
    /// The giver no longer owns it, the account already does, or too many offers wait.
    pub async fn make_offer(
        &self,
        id: InstanceId,
        (to, to_name): (UserId, &str),
        (giver, actor): (Giver, &str),
        now_ms: i64,
    ) -> Result<(), OfferError> {
        let mut tx = self.begin().await?;
        let owner = require_giver(&mut tx, id, giver).await?.ok_or(OfferError::NotYours)?;
        if owner == Some(to) {
            return Err(OfferError::TheirsAlready);
        }
        sqlx::query("DELETE FROM offers WHERE expires_ms <= $1 OR instance_id = $2")
            .bind(now_ms)
            .bind(id.as_i64())
            .execute(&mut *tx)
            .await?;
        let sql = "SELECT COUNT(*) FILTER (WHERE made_by_id = $1) AS made,
            COUNT(*) FILTER (WHERE to_id = $2) AS waiting FROM offers";
        let counted =
            sqlx::query(sql).bind(giver.id().map(|id| id.0)).bind(to.0).fetch_one(&mut *tx).await?;
        if counted.try_get::<i64, _>("made")? >= MOST_MADE
            || counted.try_get::<i64, _>("waiting")? >= MOST_WAITING
        {
            return Err(OfferError::TooMany);
        }
        let sql = "INSERT INTO offers (instance_id, to_id, made_by_id, created_ms, expires_ms)
            VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(sql)
            .bind(id.as_i64())
            .bind(to.0)
            .bind(giver.id().map(|id| id.0))
            .bind(now_ms)
            .bind(now_ms + STANDS_MS)
            .execute(&mut *tx)
            .await?;
        record(&mut tx, id, ("offer", actor, to_name), now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Withdraws an offer.
    ///
    /// # Errors
    /// The giver no longer owns it, or it was not offered.
    pub async fn withdraw_offer(
        &self,
        id: InstanceId,
        (giver, actor): (Giver, &str),
        now_ms: i64,
    ) -> Result<(), OfferError> {
        let mut tx = self.begin().await?;
        require_giver(&mut tx, id, giver).await?.ok_or(OfferError::NotYours)?;
        let sql = "DELETE FROM offers WHERE instance_id = $1";
        if sqlx::query(sql).bind(id.as_i64()).execute(&mut *tx).await?.rows_affected() == 0 {
            return Err(OfferError::NoOffer);
        }
        record(&mut tx, id, ("withdraw", actor, ""), now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Declines an offer.
    ///
    /// # Errors
    /// The account has no such offer.
    pub async fn decline_offer(
        &self,
        id: InstanceId,
        (user, actor): (UserId, &str),
        now_ms: i64,
    ) -> Result<(), OfferError> {
        let mut tx = self.begin().await?;
        let sql = "DELETE FROM offers WHERE instance_id = $1 AND to_id = $2";
        let done = sqlx::query(sql).bind(id.as_i64()).bind(user.0).execute(&mut *tx).await?;
        if done.rows_affected() == 0 {
            return Err(OfferError::NoOffer);
        }
        record(&mut tx, id, ("decline", actor, ""), now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Moves an offered instance to its receiver. From here on it, and the hours of its GPUs, count
    /// against the quota of that account and of its groups. Shares were taken from the former
    /// owner: their receivers are asked again.
    ///
    /// # Errors
    /// There is no such offer, or the account may not hold it.
    pub async fn take_offer(
        &self,
        id: InstanceId,
        (user, actor): (UserId, &str),
        now_ms: i64,
    ) -> Result<(), OfferError> {
        let mut tx = self.begin().await?;
        let sql = format!(
            "SELECT i.spec, i.desired, a.instance_id IS NOT NULL AS held FROM offers o
             JOIN instances i ON i.id = o.instance_id
             LEFT JOIN users m ON m.id = o.made_by_id
             LEFT JOIN allocations a ON a.instance_id = i.id
             WHERE {STANDING} AND o.instance_id = $2 AND o.to_id = $3"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now_ms)
            .bind(id.as_i64())
            .bind(user.0)
            .fetch_optional(&mut *tx)
            .await?;
        let row = row.ok_or(OfferError::NoOffer)?;
        move_owner(&mut tx, id, user, (&read_spec(&row)?, row.try_get("held")?), now_ms).await?;
        record(&mut tx, id, ("owner", actor, actor), now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Makes an admin the owner; the admin's own act is consent enough.
    ///
    /// # Errors
    /// The admin already owns it, or may not hold it.
    pub async fn take_over(
        &self,
        id: InstanceId,
        (user, actor): (UserId, &str),
        now_ms: i64,
    ) -> Result<(), OfferError> {
        let mut tx = self.begin().await?;
        let sql = "SELECT i.spec, i.desired, i.owner_id, a.instance_id IS NOT NULL AS held
            FROM instances i LEFT JOIN allocations a ON a.instance_id = i.id WHERE i.id = $1";
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&mut *tx).await?;
        let row = row.ok_or(OfferError::NotYours)?;
        if row.try_get::<Option<i64>, _>("owner_id")? == Some(user.0) {
            return Err(OfferError::TheirsAlready);
        }
        if row.try_get::<String, _>("desired")? == "deleted" {
            return Err(OfferError::Leaving);
        }
        move_owner(&mut tx, id, user, (&read_spec(&row)?, row.try_get("held")?), now_ms).await?;
        record(&mut tx, id, ("owner", actor, actor), now_ms).await?;
        tx.commit().await?;
        Ok(())
    }
}

async fn move_owner(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    to: UserId,
    (spec, held): (&InstanceSpec, bool),
    now_ms: i64,
) -> Result<(), OfferError> {
    if let Some(name) = &spec.name {
        match require_free_name(tx, Some(to), name, None).await {
            Ok(()) => {}
            Err(CreateError::NameTaken(name)) => return Err(OfferError::NameTaken(name)),
            Err(CreateError::Store(error)) => return Err(error.into()),
            Err(_) => return Err(OfferError::NoOffer),
        }
    }
    // Without an owner for a moment: a group of both giver and receiver must not count it twice.
    sqlx::query("UPDATE instances SET owner_id = NULL, label = NULL WHERE id = $1")
        .bind(id.as_i64())
        .execute(&mut **tx)
        .await?;
    let exists = Holdings {
        instances: 1,
        disk_bytes: spec.vm_disk_bytes.unwrap_or(0),
        ..Holdings::default()
    };
    let asked = if held { Holdings::of(spec, true) } else { exists };
    match check_quota(tx, Some(to), &asked, now_ms).await {
        Ok(()) => {}
        Err(CreateError::OverQuota(over)) => return Err(OfferError::OverQuota(over)),
        Err(CreateError::Store(error)) => return Err(error.into()),
        Err(_) => return Err(OfferError::NoOffer),
    }
    sqlx::query("UPDATE instances SET owner_id = $2, label = $3 WHERE id = $1")
        .bind(id.as_i64())
        .bind(to.0)
        .bind(spec.name.as_ref().map(InstanceName::as_str))
        .execute(&mut **tx)
        .await?;
    move_gpu_time(tx, id, now_ms).await?;
    for sql in [
        "DELETE FROM offers WHERE instance_id = $1",
        "DELETE FROM share_answers WHERE instance_id = $1 AND answer = 'taken'",
    ] {
        sqlx::query(sql).bind(id.as_i64()).execute(&mut **tx).await?;
    }
    // The owner needs no share.
    sqlx::query("DELETE FROM shares WHERE instance_id = $1 AND user_id = $2")
        .bind(id.as_i64())
        .bind(to.0)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn record(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    (kind, actor, detail): (&'static str, &str, &str),
    now_ms: i64,
) -> Result<(), StoreError> {
    let event = NewEvent { kind, actor: actor.to_owned(), detail: detail.to_owned() };
    insert_event(tx, id, &event, now_ms).await?;
    touch(tx, id).await
}

fn read_spec(row: &sqlx::sqlite::SqliteRow) -> Result<InstanceSpec, StoreError> {
    let damaged = |_| StoreError::Inconsistent { table: "instances", column: "spec" };
    serde_json::from_str(&row.try_get::<String, _>("spec")?).map_err(damaged)
}
