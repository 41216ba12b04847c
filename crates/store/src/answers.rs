//! Accounts' answers to shares.
//!
//! ```text
//!  shared --taken--> in lists, as NAME.OWNER or under a name of one's own choice
//!         --declined--> no access, and not asked again
//! ```
//!
//! An answer is about one account and one instance, for its own shares and those of groups alike.
//! Taking counts for shares that existed then: a share that ends and is created again waits for an
//! answer again.

use kohakuriver_model::{InstanceId, InstanceName, ShareLevel, UserId};
use sqlx::{Row, Sqlite, Transaction};

use crate::events::{NewEvent, insert_event};
use crate::shares::{ShareState, read_level, touch};
use crate::{Store, StoreError};

/// A share with an account, whatever its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedShare {
    pub id: InstanceId,
    pub name: Option<String>,
    /// `None`: no owner.
    pub owner: Option<String>,
    /// The highest level of its shares.
    pub level: ShareLevel,
    /// The groups through which the account has it.
    pub groups: Vec<String>,
    pub state: ShareState,
    pub alias: Option<String>,
    /// When the oldest of its shares was created.
    pub shared_ms: i64,
}

/// The reason why an answer was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The share has ended.
    #[error("the VPS is not shared with you")]
    NotShared,
    #[error("you already use the name '{0}' for another VPS")]
    NameTaken(InstanceName),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AnswerError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Lists everything shared with an account, by instance, newest first.
    pub async fn received_shares(&self, user: UserId) -> Result<Vec<ReceivedShare>, StoreError> {
        let sql = "SELECT s.instance_id, s.level, s.created_ms, i.label, o.username AS owner,
            g.name AS group_name, a.answer, a.alias,
            ifnull(a.answered_ms >= s.created_ms, 0) AS in_time
            FROM shares s JOIN instances i ON i.id = s.instance_id
            LEFT JOIN users o ON o.id = i.owner_id
            LEFT JOIN groups g ON g.id = s.group_id
            LEFT JOIN share_answers a ON a.instance_id = s.instance_id AND a.user_id = $1
            WHERE (s.user_id = $1
                OR s.group_id IN (SELECT group_id FROM group_members WHERE user_id = $1))
            AND ifnull(i.owner_id, 0) <> $1 ORDER BY s.instance_id DESC, s.created_ms";
        let mut all: Vec<ReceivedShare> = Vec::new();
        for row in sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await? {
            let id = InstanceId::from_u64(row.try_get::<i64, _>("instance_id")? as u64);
            let level = read_level(&row)?;
            let answer: Option<String> = row.try_get("answer")?;
            let state = match answer.as_deref() {
                Some("declined") => ShareState::Declined,
                Some("taken") if row.try_get("in_time")? => ShareState::Taken,
                Some(_) | None => ShareState::Offered,
            };
            let group: Option<String> = row.try_get("group_name")?;
            if all.last().is_none_or(|last| last.id != id) {
                all.push(ReceivedShare {
                    id,
                    name: row.try_get("label")?,
                    owner: row.try_get("owner")?,
                    level,
                    groups: Vec::new(),
                    state,
                    alias: None,
                    shared_ms: row.try_get("created_ms")?,
                });
            }
            let Some(share) = all.last_mut() else { continue };
            share.level = share.level.max(level);
            share.groups.extend(group);
            if state == ShareState::Taken {
                share.state = state;
                share.alias = row.try_get("alias")?;
            }
        }
        Ok(all)
    }

    /// Takes a share, under a name of the account's choice or its usual one.
    ///
    /// # Errors
    /// It is no longer shared, or the account has something else of that name.
    pub async fn take_share(
        &self,
        id: InstanceId,
        (user, actor): (UserId, &str),
        alias: Option<&InstanceName>,
        now_ms: i64,
    ) -> Result<(), AnswerError> {
        let mut tx = self.begin().await?;
        let newest = newest_share(&mut tx, id, user).await?;
        if let Some(alias) = alias {
            require_free_alias(&mut tx, user, alias, id).await?;
        }
        let answer = Answer { state: ShareState::Taken, alias, at_ms: now_ms.max(newest) };
        write(&mut tx, id, user, &answer).await?;
        let event = NewEvent { kind: "take", actor: actor.to_owned(), detail: String::new() };
        insert_event(&mut tx, id, &event, now_ms).await?;
        touch(&mut tx, id).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Declines or leaves a share, which ends its access.
    ///
    /// # Errors
    /// It is no longer shared.
    pub async fn decline_share(
        &self,
        id: InstanceId,
        (user, actor): (UserId, &str),
        now_ms: i64,
    ) -> Result<(), AnswerError> {
        let mut tx = self.begin().await?;
        newest_share(&mut tx, id, user).await?;
        let answer = Answer { state: ShareState::Declined, alias: None, at_ms: now_ms };
        write(&mut tx, id, user, &answer).await?;
        let event = NewEvent { kind: "decline", actor: actor.to_owned(), detail: String::new() };
        insert_event(&mut tx, id, &event, now_ms).await?;
        touch(&mut tx, id).await?;
        tx.commit().await?;
        Ok(())
    }
}

struct Answer<'a> {
    state: ShareState,
    alias: Option<&'a InstanceName>,
    at_ms: i64,
}

async fn write(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    user: UserId,
    answer: &Answer<'_>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO share_answers (instance_id, user_id, answer, alias, answered_ms)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (instance_id, user_id) DO UPDATE
        SET answer = excluded.answer, alias = excluded.alias, answered_ms = excluded.answered_ms";
    sqlx::query(sql)
        .bind(id.as_i64())
        .bind(user.0)
        .bind(answer.state.as_str())
        .bind(answer.alias.map(InstanceName::as_str))
        .bind(answer.at_ms)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Returns when the newest share of the account was created.
async fn newest_share(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    user: UserId,
) -> Result<i64, AnswerError> {
    let sql = "SELECT MAX(created_ms) AS newest FROM shares WHERE instance_id = $1
        AND (user_id = $2
            OR group_id IN (SELECT group_id FROM group_members WHERE user_id = $2))";
    let row = sqlx::query(sql).bind(id.as_i64()).bind(user.0).fetch_one(&mut **tx).await?;
    row.try_get::<Option<i64>, _>("newest")?.ok_or(AnswerError::NotShared)
}

/// Rejects a name that the account already uses. An alias of an ended share is free.
async fn require_free_alias(
    tx: &mut Transaction<'_, Sqlite>,
    user: UserId,
    alias: &InstanceName,
    itself: InstanceId,
) -> Result<(), AnswerError> {
    let sql = "SELECT 1 FROM instances WHERE owner_id = $1 AND label = $2
        UNION ALL SELECT 1 FROM requests WHERE owner_id = $1 AND label = $2 AND state = 'pending'
        UNION ALL SELECT 1 FROM share_answers a JOIN shares s ON s.instance_id = a.instance_id
            WHERE a.user_id = $1 AND a.alias = $2 AND a.instance_id <> $3
            AND a.answered_ms >= s.created_ms AND (s.user_id = $1
                OR s.group_id IN (SELECT group_id FROM group_members WHERE user_id = $1))";
    let taken = sqlx::query(sql)
        .bind(user.0)
        .bind(alias.as_str())
        .bind(itself.as_i64())
        .fetch_optional(&mut **tx)
        .await?;
    if taken.is_some() {
        return Err(AnswerError::NameTaken(alias.clone()));
    }
    sqlx::query("UPDATE share_answers SET alias = NULL WHERE user_id = $1 AND alias = $2")
        .bind(user.0)
        .bind(alias.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
