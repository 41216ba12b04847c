//! Whose an instance is, and with whom it is shared.

use std::collections::HashMap;

use kohakuriver_model::{GroupId, ShareLevel, TaskId, UserId};
use sqlx::Row;

use crate::{Store, StoreError};

/// Which instances a question is about. Others do not exist for whom it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Who asks: what is theirs comes first where a name means several.
    pub me: Option<UserId>,
    /// All there are, not only what is theirs or shared with them.
    pub all: bool,
}

impl Scope {
    pub const ALL: Self = Self { me: None, all: true };
}

/// With whom something is shared.
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
    /// The user's; empty for a group.
    pub display_name: String,
    pub level: ShareLevel,
    pub created_ms: i64,
}

/// What somebody is to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    pub owner: bool,
    /// The most that any share gives, the person's own or a group's.
    pub level: Option<ShareLevel>,
}

impl Store {
    /// What a user is to an instance or to a request for one. `None`: there is neither.
    pub async fn relation(
        &self,
        user: Option<UserId>,
        id: TaskId,
    ) -> Result<Option<Relation>, StoreError> {
        let sql = "SELECT owner_id FROM instances WHERE id = $1
            UNION ALL SELECT owner_id FROM requests WHERE id = $1 AND state <> 'approved'";
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&self.readers).await?;
        let Some(row) = row else { return Ok(None) };
        let Some(user) = user else { return Ok(Some(Relation::default())) };
        let owner = row.try_get::<Option<i64>, _>("owner_id")? == Some(user.0);
        let sql = "SELECT level FROM shares WHERE instance_id = $1 AND (user_id = $2
            OR group_id IN (SELECT group_id FROM group_members WHERE user_id = $2))";
        let rows = sqlx::query(sql).bind(id.as_i64()).bind(user.0).fetch_all(&self.readers).await?;
        let mut level = None;
        for row in rows {
            level = level.max(Some(read_level(&row)?));
        }
        Ok(Some(Relation { owner, level }))
    }

    /// What is shared with somebody, and how much of it.
    pub async fn shared_with(
        &self,
        user: UserId,
    ) -> Result<HashMap<TaskId, ShareLevel>, StoreError> {
        let sql = "SELECT instance_id, level FROM shares WHERE user_id = $1
            OR group_id IN (SELECT group_id FROM group_members WHERE user_id = $1)";
        let rows = sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await?;
        let mut shared = HashMap::new();
        for row in rows {
            let id = TaskId::from_u64(row.try_get::<i64, _>("instance_id")? as u64);
            let level = read_level(&row)?;
            let most = shared.entry(id).or_insert(level);
            *most = level.max(*most);
        }
        Ok(shared)
    }

    pub async fn list_shares(&self, id: TaskId) -> Result<Vec<ShareRow>, StoreError> {
        Ok(self.all_shares(Some(id)).await?.remove(&id).unwrap_or_default())
    }

    /// Of one instance, or of all.
    pub async fn all_shares(
        &self,
        id: Option<TaskId>,
    ) -> Result<HashMap<TaskId, Vec<ShareRow>>, StoreError> {
        let sql = "SELECT s.*, u.username, u.display_name, g.name AS group_name FROM shares s
            LEFT JOIN users u ON u.id = s.user_id LEFT JOIN groups g ON g.id = s.group_id
            WHERE ifnull(s.instance_id = $1, 1) ORDER BY s.created_ms";
        let rows = sqlx::query(sql).bind(id.map(TaskId::as_i64)).fetch_all(&self.readers).await?;
        let mut shares: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows {
            let user: Option<i64> = row.try_get("user_id")?;
            let group: Option<i64> = row.try_get("group_id")?;
            let (to, name) = match (user, group) {
                (Some(user), _) => (Grantee::User(UserId(user)), row.try_get("username")?),
                (None, Some(group)) => (Grantee::Group(GroupId(group)), row.try_get("group_name")?),
                (None, None) => continue,
            };
            let id = TaskId::from_u64(row.try_get::<i64, _>("instance_id")? as u64);
            shares.entry(id).or_default().push(ShareRow {
                to,
                name,
                display_name: row.try_get::<Option<String>, _>("display_name")?.unwrap_or_default(),
                level: read_level(&row)?,
                created_ms: row.try_get("created_ms")?,
            });
        }
        Ok(shares)
    }

    /// Shares an instance, at another level than before where it is shared already.
    pub async fn set_share(
        &self,
        id: TaskId,
        to: Grantee,
        level: ShareLevel,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        delete_share_in(&mut tx, id, to).await?;
        let (user, group) = columns(to);
        let sql = "INSERT INTO shares (instance_id, user_id, group_id, level, created_ms)
            VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(sql)
            .bind(id.as_i64())
            .bind(user)
            .bind(group)
            .bind(level.as_str())
            .bind(now_ms)
            .execute(&mut *tx)
            .await?;
        sqlx::query("UPDATE instances SET revision = revision + 1 WHERE id = $1")
            .bind(id.as_i64())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// False where it was not shared.
    pub async fn delete_share(&self, id: TaskId, to: Grantee) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let was = delete_share_in(&mut tx, id, to).await?;
        sqlx::query("UPDATE instances SET revision = revision + 1 WHERE id = $1")
            .bind(id.as_i64())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(was)
    }

    /// Gives an instance to somebody else.
    pub async fn set_owner(&self, id: TaskId, owner: UserId) -> Result<(), StoreError> {
        let sql = "UPDATE instances SET owner_id = $2, revision = revision + 1 WHERE id = $1";
        sqlx::query(sql).bind(id.as_i64()).bind(owner.0).execute(&self.writer).await?;
        Ok(())
    }
}

fn columns(to: Grantee) -> (Option<i64>, Option<i64>) {
    match to {
        Grantee::User(user) => (Some(user.0), None),
        Grantee::Group(group) => (None, Some(group.0)),
    }
}

async fn delete_share_in(
    tx: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    id: TaskId,
    to: Grantee,
) -> Result<bool, StoreError> {
    let (user, group) = columns(to);
    let sql = "DELETE FROM shares WHERE instance_id = $1
        AND ifnull(user_id, 0) = ifnull($2, 0) AND ifnull(group_id, 0) = ifnull($3, 0)";
    let done = sqlx::query(sql).bind(id.as_i64()).bind(user).bind(group).execute(&mut **tx).await?;
    Ok(done.rows_affected() > 0)
}

pub(crate) fn read_level(row: &sqlx::sqlite::SqliteRow) -> Result<ShareLevel, StoreError> {
    let damaged = |_| StoreError::Inconsistent { table: "shares", column: "level" };
    row.try_get::<String, _>("level")?.parse().map_err(damaged)
}
