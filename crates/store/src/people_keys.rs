//! The accounts that may enter each instance, and their registered keys.

use std::collections::HashMap;

use kohakuriver_model::{InstanceId, Role, UserId};
use sqlx::Row;

use crate::shares::read_level;
use crate::{Relation, Store, StoreError};

/// An active account that owns an instance, has a share of it, or is an admin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonOf {
    pub instance: InstanceId,
    pub user: UserId,
    pub role: Role,
    /// False for admins without a share.
    pub relation: Relation,
}

impl Store {
    /// Returns the accounts of one instance, or of all, by instance. An account with two relations
    /// to an instance is listed twice; one that depends on a provider and has not logged in there
    /// since `provider_ms` is left out.
    pub async fn people_of(
        &self,
        id: Option<InstanceId>,
        provider_ms: i64,
    ) -> Result<Vec<PersonOf>, StoreError> {
        let sql = "WITH active AS (SELECT * FROM users WHERE is_active = 1
            AND (external IS NULL OR password IS NOT NULL OR provider_ms > $2))
          SELECT i.id, u.id AS user, u.role, 1 AS owner, NULL AS level
            FROM instances i JOIN active u ON u.id = i.owner_id
            WHERE ifnull(i.id = $1, 1)
          UNION ALL SELECT s.instance_id, u.id, u.role, 0, s.level
            FROM shares s JOIN active u ON u.id = s.user_id OR u.id IN
              (SELECT m.user_id FROM group_members m WHERE m.group_id = s.group_id)
            WHERE ifnull(s.instance_id = $1, 1)
            AND NOT EXISTS (SELECT 1 FROM share_answers a WHERE a.instance_id = s.instance_id
              AND a.user_id = u.id AND a.answer = 'declined')
          UNION ALL SELECT i.id, u.id, u.role, 0, NULL
            FROM instances i JOIN active u ON u.role = 'admin'
            WHERE ifnull(i.id = $1, 1)
          ORDER BY 1";
        let rows = sqlx::query(sql)
            .bind(id.map(InstanceId::as_i64))
            .bind(provider_ms)
            .fetch_all(&self.readers)
            .await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let level: Option<String> = row.try_get("level")?;
            let level = level.map(|_| read_level(row)).transpose()?;
            let damaged = |_| StoreError::Inconsistent { table: "users", column: "role" };
            Ok(PersonOf {
                instance: InstanceId::from_u64(row.try_get::<i64, _>("id")? as u64),
                user: UserId(row.try_get("user")?),
                role: row.try_get::<String, _>("role")?.parse().map_err(damaged)?,
                relation: Relation { owner: row.try_get("owner")?, level },
            })
        };
        rows.iter().map(read).collect()
    }

    /// Returns the registered keys of all active accounts, as OpenSSH public key lines with a
    /// growing number each: once for all instances, since many share an account.
    pub async fn keys_of_accounts(
        &self,
    ) -> Result<HashMap<UserId, Vec<(i64, String)>>, StoreError> {
        let sql = "SELECT k.id, k.user_id, k.line FROM user_keys k
            JOIN users u ON u.id = k.user_id WHERE u.is_active = 1 ORDER BY k.id";
        let mut keys: HashMap<UserId, Vec<(i64, String)>> = HashMap::new();
        for row in sqlx::query(sql).fetch_all(&self.readers).await? {
            let key = (row.try_get("id")?, row.try_get("line")?);
            keys.entry(UserId(row.try_get("user_id")?)).or_default().push(key);
        }
        Ok(keys)
    }

    /// Returns the active accounts that may enter an instance under creation.
    pub async fn first_people(&self, owner: Option<UserId>) -> Result<Vec<UserId>, StoreError> {
        let sql = "SELECT id FROM users WHERE is_active = 1 AND (id = $1 OR role = 'admin')";
        let rows =
            sqlx::query(sql).bind(owner.map(|owner| owner.0)).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(UserId(row.try_get("id")?))).collect()
    }
}
