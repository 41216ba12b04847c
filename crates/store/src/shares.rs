//! Owners and shares of instances.
//!
//! A share gives access at once. It enters the receiver's lists only once taken
//! ([`crate::answers`]), so that no account fills another's lists or configuration.

use std::collections::HashMap;

use kohakuriver_model::{GroupId, InstanceId, ShareLevel, UserId};
use sqlx::{Row, Sqlite, Transaction};

use crate::events::{NewEvent, insert_event};
use crate::{Store, StoreError};

/// More receivers of one instance belong into a group.
const MOST_PER_INSTANCE: i64 = 250;
/// Over all instances of one owner.
const MOST_PER_OWNER: i64 = 1000;

/// The instances that a query covers; others do not exist for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The asking account: its own come first where a name is ambiguous.
    pub me: Option<UserId>,
    /// All instances, not only those owned by or shared with it.
    pub all: bool,
    /// Whether the plain name of another account's instance is enough.
    pub others_by_name: bool,
}

impl Scope {
    pub const ALL: Self = Self { me: None, all: true, others_by_name: true };
}

/// The receiver of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grantee {
    User(UserId),
    Group(GroupId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRow {
    pub to: Grantee,
    /// The user's or group's name.
    pub name: String,
    /// The user's display name; empty for a group.
    pub display_name: String,
    pub level: ShareLevel,
    /// The user's answer; `None` for a group.
    pub state: Option<ShareState>,
    pub created_ms: i64,
}

/// An account's answer to a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareState {
    /// Not yet answered: it has access, and the instance is in none of its lists.
    Offered,
    Taken,
    /// It has no access.
    Declined,
}

impl ShareState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Taken => "taken",
            Self::Declined => "declined",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        match text {
            "offered" => Ok(Self::Offered),
            "taken" => Ok(Self::Taken),
            "declined" => Ok(Self::Declined),
            _ => Err(StoreError::Inconsistent { table: "share_answers", column: "answer" }),
        }
    }
}

/// The account on whose behalf an instance is shared or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giver {
    /// The owner; refused where it no longer owns the instance.
    Owner(UserId),
    /// An admin, or any caller of a host without login.
    Admin(Option<UserId>),
}

impl Giver {
    pub(crate) const fn id(self) -> Option<UserId> {
        match self {
            Self::Owner(id) => Some(id),
            Self::Admin(id) => id,
        }
    }
}

/// The reason why a share was not made.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It was given away, or deleted, since the caller was authorized.
    #[error("the VPS is no longer yours")]
    NotYours,
    #[error("a VPS can have at most {MOST_PER_INSTANCE} shares, and an account {MOST_PER_OWNER}")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ShareError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// A share as its receiver has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedWith {
    pub level: ShareLevel,
    pub taken: bool,
    /// The account's alias, where it chose one that none of its own instances has.
    pub alias: Option<String>,
}

/// An account's relation to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    pub owner: bool,
    /// The highest level of the account's own shares and its groups'.
    pub level: Option<ShareLevel>,
}

impl Store {
    /// Returns a user's relation to an instance or request; `None` where neither exists.
    pub async fn relation(
        &self,
        user: Option<UserId>,
        id: InstanceId,
    ) -> Result<Option<Relation>, StoreError> {
        let sql = "SELECT owner_id FROM instances WHERE id = $1
            UNION ALL SELECT owner_id FROM requests WHERE id = $1 AND state <> 'approved'";
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&self.readers).await?;
        let Some(row) = row else { return Ok(None) };
        let Some(user) = user else { return Ok(Some(Relation::default())) };
        let owner = row.try_get::<Option<i64>, _>("owner_id")? == Some(user.0);
        let shared = self.shared(user, Some(id)).await?;
        Ok(Some(Relation { owner, level: shared.get(&id).map(|shared| shared.level) }))
    }

    /// Lists the shares of an account, except declined ones.
    pub async fn shared_with(
        &self,
        user: UserId,
    ) -> Result<HashMap<InstanceId, SharedWith>, StoreError> {
        self.shared(user, None).await
    }

    /// Does the same as [`Self::shared_with`] for one instance or all.
    pub async fn shared(
        &self,
        user: UserId,
        id: Option<InstanceId>,
    ) -> Result<HashMap<InstanceId, SharedWith>, StoreError> {
        // An alias never hides the account's own instance.
        let sql = "SELECT s.instance_id, s.level,
            ifnull(a.answer = 'taken' AND a.answered_ms >= s.created_ms, 0) AS taken,
            CASE WHEN a.alias IN (SELECT label FROM instances WHERE owner_id = $1)
                OR a.alias IN (SELECT label FROM requests
                    WHERE owner_id = $1 AND state <> 'approved')
                THEN NULL ELSE a.alias END AS alias
            FROM shares s LEFT JOIN share_answers a
                ON a.instance_id = s.instance_id AND a.user_id = $1
            WHERE (s.user_id = $1
                OR s.group_id IN (SELECT group_id FROM group_members WHERE user_id = $1))
            AND ifnull(a.answer, '') <> 'declined' AND ifnull(s.instance_id = $2, 1)";
        let rows = sqlx::query(sql)
            .bind(user.0)
            .bind(id.map(InstanceId::as_i64))
            .fetch_all(&self.readers)
            .await?;
        let mut shared: HashMap<InstanceId, SharedWith> = HashMap::new();
        for row in rows {
            let id = InstanceId::from_u64(row.try_get::<i64, _>("instance_id")? as u64);
            let (level, taken) = (read_level(&row)?, row.try_get::<bool, _>("taken")?);
            let new = SharedWith { level, taken: false, alias: None };
            let most = shared.entry(id).or_insert(new);
            most.level = level.max(most.level);
            if taken {
                most.taken = true;
                most.alias = row.try_get("alias")?;
            }
        }
        Ok(shared)
    }

    pub async fn list_shares(&self, id: InstanceId) -> Result<Vec<ShareRow>, StoreError> {
        Ok(self.all_shares(Some(id)).await?.remove(&id).unwrap_or_default())
    }

    /// Lists the shares of one instance, or of all.
    pub async fn all_shares(
        &self,
        id: Option<InstanceId>,
    ) -> Result<HashMap<InstanceId, Vec<ShareRow>>, StoreError> {
        let sql = "SELECT s.*, u.username, u.display_name, g.name AS group_name,
            CASE WHEN a.answer = 'declined' THEN 'declined'
                WHEN a.answer = 'taken' AND a.answered_ms >= s.created_ms THEN 'taken'
                ELSE 'offered' END AS state
            FROM shares s
            LEFT JOIN users u ON u.id = s.user_id LEFT JOIN groups g ON g.id = s.group_id
            LEFT JOIN share_answers a ON a.instance_id = s.instance_id AND a.user_id = s.user_id
            WHERE ifnull(s.instance_id = $1, 1) ORDER BY s.created_ms";
        let rows =
            sqlx::query(sql).bind(id.map(InstanceId::as_i64)).fetch_all(&self.readers).await?;
        let mut shares: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows {
            let user: Option<i64> = row.try_get("user_id")?;
            let group: Option<i64> = row.try_get("group_id")?;
            let state = ShareState::parse(&row.try_get::<String, _>("state")?)?;
            let (to, name) = match (user, group) {
                (Some(user), _) => (Grantee::User(UserId(user)), row.try_get("username")?),
                (None, Some(group)) => (Grantee::Group(GroupId(group)), row.try_get("group_name")?),
                (None, None) => continue,
            };
            let id = InstanceId::from_u64(row.try_get::<i64, _>("instance_id")? as u64);
            shares.entry(id).or_default().push(ShareRow {
                to,
                name,
                display_name: row.try_get::<Option<String>, _>("display_name")?.unwrap_or_default(),
                level: read_level(&row)?,
                state: user.map(|_| state),
                created_ms: row.try_get("created_ms")?,
            });
        }
        Ok(shares)
    }

    /// Shares an instance with each receiver, or changes the level of existing shares; all or
    /// nothing. A change of level alone keeps a share taken.
    ///
    /// # Errors
    /// The giver no longer owns it, or it has too many shares.
    pub async fn set_shares(
        &self,
        id: InstanceId,
        to: &[Grantee],
        level: ShareLevel,
        (giver, actor): (Giver, &str),
        now_ms: i64,
    ) -> Result<(), ShareError> {
        let mut tx = self.begin().await?;
        require_giver(&mut tx, id, giver).await?.ok_or(ShareError::NotYours)?;
        for to in to {
            let (user, group) = columns(*to);
            let sql = "INSERT INTO shares (instance_id, user_id, group_id, level, created_ms)
                VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (instance_id, ifnull(user_id, 0), ifnull(group_id, 0))
                DO UPDATE SET level = excluded.level";
            sqlx::query(sql)
                .bind(id.as_i64())
                .bind(user)
                .bind(group)
                .bind(level.as_str())
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
            let name = name_of(&mut tx, *to).await?;
            let detail = format!("{name} {level}");
            let event = NewEvent { kind: "share", actor: actor.to_owned(), detail };
            insert_event(&mut tx, id, &event, now_ms).await?;
        }
        let sql =
            "SELECT COUNT(*) FILTER (WHERE s.instance_id = $1) AS here, COUNT(*) AS all_of_owner
            FROM shares s JOIN instances i ON i.id = s.instance_id
            WHERE ifnull(i.owner_id, 0) =
                (SELECT ifnull(owner_id, 0) FROM instances WHERE id = $1)";
        let counted = sqlx::query(sql).bind(id.as_i64()).fetch_one(&mut *tx).await?;
        if counted.try_get::<i64, _>("here")? > MOST_PER_INSTANCE
            || counted.try_get::<i64, _>("all_of_owner")? > MOST_PER_OWNER
        {
            return Err(ShareError::TooMany);
        }
        touch(&mut tx, id).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Ends a share. Returns false where there was none.
    ///
    /// # Errors
    /// The giver no longer owns it.
    pub async fn delete_share(
        &self,
        id: InstanceId,
        to: Grantee,
        (giver, actor): (Giver, &str),
        now_ms: i64,
    ) -> Result<bool, ShareError> {
        let mut tx = self.begin().await?;
        require_giver(&mut tx, id, giver).await?.ok_or(ShareError::NotYours)?;
        let (user, group) = columns(to);
        let sql = "DELETE FROM shares WHERE instance_id = $1
            AND ifnull(user_id, 0) = ifnull($2, 0) AND ifnull(group_id, 0) = ifnull($3, 0)";
        let done =
            sqlx::query(sql).bind(id.as_i64()).bind(user).bind(group).execute(&mut *tx).await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let detail = name_of(&mut tx, to).await?;
        let event = NewEvent { kind: "unshare", actor: actor.to_owned(), detail };
        insert_event(&mut tx, id, &event, now_ms).await?;
        touch(&mut tx, id).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// Returns the instance's owner, if the giver may still act for it. `None`: it is another's, or
/// deleted.
pub(crate) async fn require_giver(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    giver: Giver,
) -> Result<Option<Option<UserId>>, StoreError> {
    let sql = "SELECT owner_id FROM instances WHERE id = $1";
    let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&mut **tx).await?;
    let Some(row) = row else { return Ok(None) };
    let owner = row.try_get::<Option<i64>, _>("owner_id")?.map(UserId);
    Ok(match giver {
        Giver::Owner(giver) if owner != Some(giver) => None,
        Giver::Owner(_) | Giver::Admin(_) => Some(owner),
    })
}

/// Wakes the clients that wait for a change of this instance.
pub(crate) async fn touch(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
) -> Result<(), StoreError> {
    let sql = "UPDATE instances SET revision = revision + 1 WHERE id = $1";
    sqlx::query(sql).bind(id.as_i64()).execute(&mut **tx).await?;
    Ok(())
}

/// Returns the name of an account or group, for events.
async fn name_of(tx: &mut Transaction<'_, Sqlite>, to: Grantee) -> Result<String, StoreError> {
    let (sql, id) = match to {
        Grantee::User(user) => ("SELECT username AS name FROM users WHERE id = $1", user.0),
        Grantee::Group(group) => {
            ("SELECT 'group ' || name AS name FROM groups WHERE id = $1", group.0)
        }
    };
    let row = sqlx::query(sql).bind(id).fetch_optional(&mut **tx).await?;
    Ok(row.map(|row| row.try_get("name")).transpose()?.unwrap_or_default())
}

fn columns(to: Grantee) -> (Option<i64>, Option<i64>) {
    match to {
        Grantee::User(user) => (Some(user.0), None),
        Grantee::Group(group) => (None, Some(group.0)),
    }
}

pub(crate) fn read_level(row: &sqlx::sqlite::SqliteRow) -> Result<ShareLevel, StoreError> {
    let damaged = |_| StoreError::Inconsistent { table: "shares", column: "level" };
    row.try_get::<String, _>("level")?.parse().map_err(damaged)
}
