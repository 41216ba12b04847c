//! Accounts and groups.

use kohakuriver_model::{GroupId, Quota, Role, UserId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::{Store, StoreError};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    pub id: UserId,
    pub username: String,
    pub display_name: String,
    pub role: Role,
    pub is_active: bool,
    /// A PHC string; `None` for an account that logs in by OpenID Connect only.
    pub password: Option<String>,
    /// Issuer and subject of OpenID Connect.
    pub external: Option<String>,
    /// The last log-in there.
    pub provider_ms: Option<i64>,
    pub quota: Quota,
    pub created_ms: i64,
}

#[derive(Clone, Debug)]
pub struct NewUser {
    pub username: String,
    pub display_name: String,
    pub role: Role,
    pub password: Option<String>,
    pub external: Option<String>,
}

/// Changes to an account. `None` leaves a field unchanged.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    pub display_name: Option<String>,
    pub role: Option<Role>,
    pub is_active: Option<bool>,
    pub quota: Option<Quota>,
    pub password: Option<String>,
    /// Whether API tokens and registered SSH keys are removed.
    pub end_tokens: bool,
}

/// The reason why an account was not changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("there is no such account")]
    Unknown,
    #[error("the name '{0}' is taken")]
    NameTaken(String),
    #[error("the cluster would have no admin left")]
    LastAdmin,
    #[error("the account has {0} VPSes")]
    HasInstances(i64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for UserError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl UserRow {
    /// Returns until when credentials of this account are valid, if it has to log in at its
    /// provider at least every `term_ms`. An account with a password does not depend on the
    /// provider.
    pub fn provider_end_ms(&self, term_ms: i64) -> Option<i64> {
        let depends = self.external.is_some() && self.password.is_none();
        depends.then(|| self.provider_ms.unwrap_or(0).saturating_add(term_ms))
    }
}

impl Store {
    /// Lists accounts, newest first.
    pub async fn list_users(&self) -> Result<Vec<UserRow>, StoreError> {
        let sql = "SELECT * FROM users ORDER BY id DESC";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(read_user).collect()
    }

    pub async fn lookup_user(&self, id: UserId) -> Result<Option<UserRow>, StoreError> {
        let sql = "SELECT * FROM users WHERE id = $1";
        let row = sqlx::query(sql).bind(id.0).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_user).transpose()
    }

    /// Finds an account by name, case-insensitively.
    pub async fn lookup_username(&self, name: &str) -> Result<Option<UserRow>, StoreError> {
        let sql = "SELECT * FROM users WHERE username = $1";
        let row = sqlx::query(sql).bind(name).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_user).transpose()
    }

    /// Records a log-in at the provider, with the role that the provider's groups map to. An
    /// account without any loses its role, sessions and tokens with this call, even the last admin:
    /// the host's next start then prints an invitation for another. Returns `None` where no account
    /// has this identity.
    pub async fn log_in_external(
        &self,
        external: &str,
        role: Option<Role>,
        now_ms: i64,
    ) -> Result<Option<UserRow>, UserError> {
        let mut tx = self.begin().await?;
        let sql = "SELECT * FROM users WHERE external = $1";
        let row = sqlx::query(sql).bind(external).fetch_optional(&mut *tx).await?;
        let Some(before) = row.as_ref().map(read_user).transpose()? else { return Ok(None) };
        if role.is_none() {
            for sql in [
                "UPDATE users SET role = 'anony' WHERE id = $1",
                "DELETE FROM sessions WHERE user_id = $1",
                "DELETE FROM api_tokens WHERE user_id = $1",
                "DELETE FROM password_resets WHERE user_id = $1",
            ] {
                sqlx::query(sql).bind(before.id.0).execute(&mut *tx).await?;
            }
        } else if before.is_active {
            let sql = "UPDATE users SET provider_ms = $2 WHERE id = $1";
            sqlx::query(sql).bind(before.id.0).bind(now_ms).execute(&mut *tx).await?;
        }
        if let Some(role) = role.filter(|role| before.is_active && *role != before.role) {
            set_role(&mut tx, before.id, role).await?;
            match require_admin(&mut tx, &before).await {
                // The mapping applies once there is another admin.
                Err(UserError::LastAdmin) => set_role(&mut tx, before.id, before.role).await?,
                kept => kept?,
            }
        }
        let after = user_in(&mut tx, before.id).await?;
        tx.commit().await?;
        Ok(Some(after))
    }

    /// Checks whether an account's provider term ended between two moments: its credentials are
    /// invalid since then.
    pub async fn has_lapsed(&self, after_ms: i64, until_ms: i64) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM users WHERE external IS NOT NULL AND password IS NULL
            AND provider_ms > $1 AND provider_ms <= $2 LIMIT 1";
        let row = sqlx::query(sql).bind(after_ms).bind(until_ms).fetch_optional(&self.readers);
        Ok(row.await?.is_some())
    }

    /// Checks whether the cluster has an active admin.
    pub async fn has_admin(&self) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM users WHERE role = 'admin' AND is_active = 1 LIMIT 1";
        Ok(sqlx::query(sql).fetch_optional(&self.readers).await?.is_some())
    }

    pub async fn create_user(&self, new: &NewUser, now_ms: i64) -> Result<UserRow, UserError> {
        let mut tx = self.begin().await?;
        let user = insert_user(&mut tx, new, now_ms).await?;
        tx.commit().await?;
        Ok(user)
    }

    /// Changes an account. A disabled account, or one with a new password, is logged out
    /// everywhere; the last admin stays an admin.
    pub async fn change_user(&self, id: UserId, change: &UserChange) -> Result<UserRow, UserError> {
        let mut tx = self.begin().await?;
        let before = user_in(&mut tx, id).await?;
        let quota = change.quota.unwrap_or(before.quota);
        sqlx::query(
            "UPDATE users SET display_name = $2, role = $3, is_active = $4, quota = $5, password = $6
             WHERE id = $1",
        )
        .bind(id.0)
        .bind(change.display_name.as_ref().unwrap_or(&before.display_name))
        .bind(change.role.unwrap_or(before.role).as_str())
        .bind(change.is_active.unwrap_or(before.is_active))
        .bind(quota_text(&quota)?)
        .bind(change.password.as_ref().or(before.password.as_ref()))
        .execute(&mut *tx)
        .await?;
        if change.is_active == Some(false) || change.password.is_some() {
            for sql in [
                "DELETE FROM sessions WHERE user_id = $1",
                "DELETE FROM password_resets WHERE user_id = $1",
            ] {
                sqlx::query(sql).bind(id.0).execute(&mut *tx).await?;
            }
        }
        if change.end_tokens {
            for sql in [
                "DELETE FROM api_tokens WHERE user_id = $1",
                "DELETE FROM user_keys WHERE user_id = $1",
            ] {
                sqlx::query(sql).bind(id.0).execute(&mut *tx).await?;
            }
        }
        require_admin(&mut tx, &before).await?;
        let after = user_in(&mut tx, id).await?;
        tx.commit().await?;
        Ok(after)
    }

    /// Deletes an account that owns nothing, with all its sessions, tokens and keys.
    pub async fn delete_user(&self, id: UserId) -> Result<UserRow, UserError> {
        let mut tx = self.begin().await?;
        let before = user_in(&mut tx, id).await?;
        let owned: i64 = sqlx::query("SELECT COUNT(*) AS n FROM instances WHERE owner_id = $1")
            .bind(id.0)
            .fetch_one(&mut *tx)
            .await?
            .try_get("n")?;
        if owned > 0 {
            return Err(UserError::HasInstances(owned));
        }
        sqlx::query("DELETE FROM users WHERE id = $1").bind(id.0).execute(&mut *tx).await?;
        require_admin(&mut tx, &before).await?;
        tx.commit().await?;
        Ok(before)
    }
}

/// Rolls back a change that leaves no admin; a change of another account cannot.
async fn require_admin(
    tx: &mut Transaction<'_, Sqlite>,
    before: &UserRow,
) -> Result<(), UserError> {
    if before.role != Role::Admin || !before.is_active {
        return Ok(());
    }
    let sql = "SELECT 1 FROM users WHERE role = 'admin' AND is_active = 1 LIMIT 1";
    match sqlx::query(sql).fetch_optional(&mut **tx).await? {
        Some(_) => Ok(()),
        None => Err(UserError::LastAdmin),
    }
}

async fn set_role(
    tx: &mut Transaction<'_, Sqlite>,
    id: UserId,
    role: Role,
) -> Result<(), sqlx::Error> {
    let sql = "UPDATE users SET role = $2 WHERE id = $1";
    sqlx::query(sql).bind(id.0).bind(role.as_str()).execute(&mut **tx).await?;
    Ok(())
}

async fn user_in(tx: &mut Transaction<'_, Sqlite>, id: UserId) -> Result<UserRow, UserError> {
    let sql = "SELECT * FROM users WHERE id = $1";
    let row = sqlx::query(sql).bind(id.0).fetch_optional(&mut **tx).await?;
    Ok(read_user(&row.ok_or(UserError::Unknown)?)?)
}

pub(crate) async fn insert_user(
    tx: &mut Transaction<'_, Sqlite>,
    new: &NewUser,
    now_ms: i64,
) -> Result<UserRow, UserError> {
    let taken = sqlx::query("SELECT 1 FROM users WHERE username = $1")
        .bind(&new.username)
        .fetch_optional(&mut **tx)
        .await?;
    if taken.is_some() {
        return Err(UserError::NameTaken(new.username.clone()));
    }
    let done = sqlx::query(
        "INSERT INTO users (username, display_name, role, password, external, provider_ms, created_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&new.username)
    .bind(&new.display_name)
    .bind(new.role.as_str())
    .bind(&new.password)
    .bind(&new.external)
    .bind(new.external.as_ref().map(|_| now_ms))
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    user_in(tx, UserId(done.last_insert_rowid())).await
}

pub(crate) fn quota_text(quota: &Quota) -> Result<String, StoreError> {
    serde_json::to_string(quota)
        .map_err(|_| StoreError::Inconsistent { table: "users", column: "quota" })
}

pub(crate) fn read_user(row: &SqliteRow) -> Result<UserRow, StoreError> {
    let damaged = |column| StoreError::Inconsistent { table: "users", column };
    Ok(UserRow {
        id: UserId(row.try_get("id")?),
        username: row.try_get("username")?,
        display_name: row.try_get("display_name")?,
        role: row.try_get::<String, _>("role")?.parse().map_err(|_| damaged("role"))?,
        is_active: row.try_get("is_active")?,
        password: row.try_get("password")?,
        external: row.try_get("external")?,
        provider_ms: row.try_get("provider_ms")?,
        quota: serde_json::from_str(&row.try_get::<String, _>("quota")?)
            .map_err(|_| damaged("quota"))?,
        created_ms: row.try_get("created_ms")?,
    })
}

/// A group and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    pub id: GroupId,
    pub name: String,
    /// The quota of all members together.
    pub quota: Quota,
    /// The limits within which a member's request needs no operator.
    pub auto_approve: Option<Quota>,
    pub members: Vec<(UserId, String)>,
    pub created_ms: i64,
}

impl Store {
    /// Lists groups by name.
    pub async fn list_groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM groups ORDER BY name").fetch_all(&self.readers).await?;
        let mut groups = rows.iter().map(read_group).collect::<Result<Vec<_>, _>>()?;
        let sql = "SELECT m.group_id, u.id, u.username FROM group_members m
            JOIN users u ON u.id = m.user_id ORDER BY u.username";
        for row in sqlx::query(sql).fetch_all(&self.readers).await? {
            let group = GroupId(row.try_get("group_id")?);
            if let Some(group) = groups.iter_mut().find(|g| g.id == group) {
                group.members.push((UserId(row.try_get("id")?), row.try_get("username")?));
            }
        }
        Ok(groups)
    }

    pub async fn create_group(&self, name: &str, now_ms: i64) -> Result<GroupId, UserError> {
        let sql = "INSERT INTO groups (name, created_ms) VALUES ($1, $2)";
        match sqlx::query(sql).bind(name).bind(now_ms).execute(&self.writer).await {
            Ok(done) => Ok(GroupId(done.last_insert_rowid())),
            Err(error) => match StoreError::from(error) {
                StoreError::Conflict { .. } => Err(UserError::NameTaken(name.to_owned())),
                error @ (StoreError::NotFound { .. }
                | StoreError::Stale
                | StoreError::DiskFull
                | StoreError::Inconsistent { .. }
                | StoreError::Driver(_)) => Err(error.into()),
            },
        }
    }

    /// Replaces a group's quota or rule, or removes the rule; `None` leaves it as it is, also under
    /// concurrent changes.
    pub async fn change_group(
        &self,
        id: GroupId,
        quota: Option<&Quota>,
        auto_approve: Option<Option<&Quota>>,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE groups SET quota = ifnull($2, quota),
            auto_approve = CASE WHEN $3 THEN $4 ELSE auto_approve END WHERE id = $1";
        sqlx::query(sql)
            .bind(id.0)
            .bind(quota.map(quota_text).transpose()?)
            .bind(auto_approve.is_some())
            .bind(auto_approve.flatten().map(quota_text).transpose()?)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    pub async fn delete_group(&self, id: GroupId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM groups WHERE id = $1").bind(id.0).execute(&self.writer).await?;
        Ok(())
    }

    pub async fn set_member(
        &self,
        group: GroupId,
        user: UserId,
        member: bool,
    ) -> Result<(), StoreError> {
        let sql = if member {
            "INSERT INTO group_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM group_members WHERE group_id = $1 AND user_id = $2"
        };
        sqlx::query(sql).bind(group.0).bind(user.0).execute(&self.writer).await?;
        Ok(())
    }
}

pub(crate) fn read_group(row: &SqliteRow) -> Result<GroupRow, StoreError> {
    let damaged = |column| StoreError::Inconsistent { table: "groups", column };
    let rule: Option<String> = row.try_get("auto_approve")?;
    Ok(GroupRow {
        id: GroupId(row.try_get("id")?),
        name: row.try_get("name")?,
        quota: serde_json::from_str(&row.try_get::<String, _>("quota")?)
            .map_err(|_| damaged("quota"))?,
        auto_approve: rule
            .map(|text| serde_json::from_str(&text).map_err(|_| damaged("auto_approve")))
            .transpose()?,
        members: Vec::new(),
        created_ms: row.try_get("created_ms")?,
    })
}
