//! Who might enter which instance, and with which registered keys.

use kohakuriver_model::{Role, TaskId, UserId};
use sqlx::Row;

use crate::shares::read_level;
use crate::{Relation, Store, StoreError};

/// Somebody active who owns an instance, whom it is shared with, or who administrates all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonOf {
    pub instance: TaskId,
    pub user: UserId,
    pub role: Role,
    /// Nothing of an admin's by being one.
    pub relation: Relation,
    /// A registered key of theirs, as one OpenSSH public key line: there is a row for each. Those of
    /// admins come with what else they are to it.
    pub key: Option<String>,
}

impl Store {
    /// Of one instance, or of all; by instance, then by the age of keys. One who has an instance in
    /// two ways is there twice.
    pub async fn people_of(&self, id: Option<TaskId>) -> Result<Vec<PersonOf>, StoreError> {
        let sql =
            "SELECT i.id, u.id AS user, k.id AS key_id, k.line, u.role, 1 AS owner, NULL AS level
            FROM instances i JOIN users u ON u.id = i.owner_id
            LEFT JOIN user_keys k ON k.user_id = u.id
            WHERE u.is_active = 1 AND ifnull(i.id = $1, 1)
          UNION ALL SELECT s.instance_id, u.id, k.id, k.line, u.role, 0, s.level
            FROM shares s JOIN users u ON u.id = s.user_id OR u.id IN
              (SELECT m.user_id FROM group_members m WHERE m.group_id = s.group_id)
            LEFT JOIN user_keys k ON k.user_id = u.id
            WHERE u.is_active = 1 AND ifnull(s.instance_id = $1, 1)
          UNION ALL SELECT i.id, u.id, NULL, NULL, u.role, 0, NULL
            FROM instances i JOIN users u ON u.role = 'admin'
            WHERE u.is_active = 1 AND ifnull(i.id = $1, 1)
          ORDER BY 1, 3";
        let rows = sqlx::query(sql).bind(id.map(TaskId::as_i64)).fetch_all(&self.readers).await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let level: Option<String> = row.try_get("level")?;
            let level = level.map(|_| read_level(row)).transpose()?;
            let damaged = |_| StoreError::Inconsistent { table: "users", column: "role" };
            Ok(PersonOf {
                instance: TaskId::from_u64(row.try_get::<i64, _>("id")? as u64),
                user: UserId(row.try_get("user")?),
                role: row.try_get::<String, _>("role")?.parse().map_err(damaged)?,
                relation: Relation { owner: row.try_get("owner")?, level },
                key: row.try_get("line")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The active accounts that may enter an instance that is only now made.
    pub async fn first_people(&self, owner: Option<UserId>) -> Result<Vec<UserId>, StoreError> {
        let sql = "SELECT id FROM users WHERE is_active = 1 AND (id = $1 OR role = 'admin')";
        let rows =
            sqlx::query(sql).bind(owner.map(|owner| owner.0)).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(UserId(row.try_get("id")?))).collect()
    }

    /// The registered keys of one account, if it is active: for an instance that is only now made.
    pub async fn keys_of_active(&self, user: UserId) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT k.line FROM user_keys k JOIN users u ON u.id = k.user_id
            WHERE u.id = $1 AND u.is_active = 1 ORDER BY k.id";
        let rows = sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get("line")?)).collect()
    }
}
