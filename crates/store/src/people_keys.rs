//! Which registered keys might open which instance.

use kohakuriver_model::{Role, TaskId};
use sqlx::Row;

use crate::shares::read_level;
use crate::{Relation, Store, StoreError};

/// A registered key of somebody active who owns an instance, or whom it is shared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeopleKey {
    pub instance: TaskId,
    pub role: Role,
    pub relation: Relation,
    /// One OpenSSH public key line.
    pub line: String,
}

impl Store {
    /// Of one instance, or of all; by instance and then by age. One who has an instance in two
    /// ways is there twice.
    pub async fn people_keys(&self, id: Option<TaskId>) -> Result<Vec<PeopleKey>, StoreError> {
        let sql = "SELECT i.id, k.id AS key_id, k.line, u.role, NULL AS level
            FROM instances i JOIN users u ON u.id = i.owner_id JOIN user_keys k ON k.user_id = u.id
            WHERE u.is_active = 1 AND ifnull(i.id = $1, 1)
          UNION ALL SELECT s.instance_id, k.id, k.line, u.role, s.level
            FROM shares s JOIN users u ON u.id = s.user_id OR u.id IN
              (SELECT m.user_id FROM group_members m WHERE m.group_id = s.group_id)
            JOIN user_keys k ON k.user_id = u.id
            WHERE u.is_active = 1 AND ifnull(s.instance_id = $1, 1)
          ORDER BY 1, 2";
        let rows = sqlx::query(sql).bind(id.map(TaskId::as_i64)).fetch_all(&self.readers).await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let level: Option<String> = row.try_get("level")?;
            let relation = match level {
                Some(_) => Relation { owner: false, level: Some(read_level(row)?) },
                None => Relation { owner: true, level: None },
            };
            let damaged = |_| StoreError::Inconsistent { table: "users", column: "role" };
            Ok(PeopleKey {
                instance: TaskId::from_u64(row.try_get::<i64, _>("id")? as u64),
                role: row.try_get::<String, _>("role")?.parse().map_err(damaged)?,
                relation,
                line: row.try_get("line")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The registered keys of one account, if it is active: for an instance that is only now made.
    pub async fn keys_of_active(
        &self,
        user: kohakuriver_model::UserId,
    ) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT k.line FROM user_keys k JOIN users u ON u.id = k.user_id
            WHERE u.id = $1 AND u.is_active = 1 ORDER BY k.id";
        let rows = sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get("line")?)).collect()
    }
}
