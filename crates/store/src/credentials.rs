//! Credentials: sessions, API tokens, invitations, password resets, SSH keys. Of every secret only
//! its SHA-256 is stored, in hex.

use kohakuriver_model::{GroupId, Role, UserId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::audit::{self, NewAudit};
use crate::users::{NewUser, UserError, UserRow, insert_user, read_user};
use crate::{Store, StoreError};

/// The shortest interval between writes of "last used".
const USED_EVERY_MS: i64 = 60 * 1000;

/// The owner of a credential, and the highest role it grants.
#[derive(Clone, Debug)]
pub struct AuthenticatedUser {
    pub user: UserRow,
    pub role: Role,
    pub expires_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
pub struct NewSession<'a> {
    pub user: UserId,
    pub hash: &'a str,
    pub now_ms: i64,
    pub expires_ms: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    pub user: UserId,
    pub name: &'a str,
    pub hash: &'a str,
    pub role: Role,
    pub expires_ms: Option<i64>,
    /// The hash of the token that created it; it ends when that token ends.
    pub parent: Option<&'a str>,
}

#[derive(Clone, Debug)]
pub struct TokenRow {
    pub id: i64,
    pub parent: Option<i64>,
    pub name: String,
    pub role: Role,
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
    pub used_ms: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct InvitationRow {
    pub id: i64,
    /// The first characters of its secret.
    pub shown: String,
    pub role: Role,
    pub group: Option<GroupId>,
    pub max_usage: u32,
    pub usage_count: u32,
    pub expires_ms: i64,
    pub created_by: Option<UserId>,
    pub created_ms: i64,
}

#[derive(Clone, Debug)]
pub struct NewInvitation {
    pub hash: String,
    pub shown: String,
    pub role: Role,
    pub group: Option<GroupId>,
    pub max_usage: u32,
    pub expires_ms: i64,
    pub created_by: Option<UserId>,
}

#[derive(Clone, Debug)]
pub struct UserKeyRow {
    pub id: i64,
    pub user: UserId,
    pub fingerprint: String,
    /// An OpenSSH public key line.
    pub line: String,
    pub created_ms: i64,
}

/// The reason why an invitation is rejected.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    #[error("this host did not issue this invitation")]
    Unknown,
    #[error("this invitation has expired or is used up")]
    Spent,
    #[error(transparent)]
    User(#[from] UserError),
}

impl From<sqlx::Error> for InvitationError {
    fn from(error: sqlx::Error) -> Self {
        Self::User(error.into())
    }
}

impl From<StoreError> for InvitationError {
    fn from(error: StoreError) -> Self {
        Self::User(error.into())
    }
}

impl Store {
    pub async fn create_session(&self, new: &NewSession<'_>) -> Result<(), StoreError> {
        insert_session(&mut *self.writer.acquire().await?, new).await
    }

    /// Starts a session and records the log-in, both or neither, without waiting for the disk. A
    /// power cut right after it loses the session together with its entry, and the account logs in
    /// again. Lasting changes of that session are committed with a sync, which makes this durable
    /// first: no act is in the log without its log-in.
    pub async fn log_in(&self, new: &NewSession<'_>, entry: NewAudit) -> Result<(), StoreError> {
        let (_turn, mut tx) = self.begin_unsynced().await?;
        insert_session(&mut tx, new).await?;
        audit::append(&mut tx, &[entry]).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Ends a session; returns false where there is none. Unauthenticated callers can pass any
    /// text, so nothing is written, nor the write lock taken, unless one is found.
    pub async fn delete_session(&self, hash: &str) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM sessions WHERE hash = $1";
        if sqlx::query(sql).bind(hash).fetch_optional(&self.readers).await?.is_none() {
            return Ok(false);
        }
        let sql = "DELETE FROM sessions WHERE hash = $1";
        let done = sqlx::query(sql).bind(hash).execute(&self.writer).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Returns the account of a valid session, if it is active.
    pub async fn session(
        &self,
        hash: &str,
        now_ms: i64,
    ) -> Result<Option<AuthenticatedUser>, StoreError> {
        let sql =
            "SELECT u.*, s.expires_ms AS until FROM sessions s JOIN users u ON u.id = s.user_id
            WHERE s.hash = $1 AND s.expires_ms > $2 AND u.is_active = 1";
        let row = sqlx::query(sql).bind(hash).bind(now_ms).fetch_optional(&self.readers).await?;
        let Some(row) = row else { return Ok(None) };
        let user = read_user(&row)?;
        Ok(Some(AuthenticatedUser {
            role: user.role,
            expires_ms: Some(row.try_get("until")?),
            user,
        }))
    }

    pub async fn create_token(&self, new: &NewToken<'_>, now_ms: i64) -> Result<i64, StoreError> {
        let mut tx = self.begin().await?;
        let parent = living_token(&mut tx, new.parent).await?;
        let sql =
            "INSERT INTO api_tokens (user_id, name, hash, role, created_ms, expires_ms, parent_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let done = sqlx::query(sql)
            .bind(new.user.0)
            .bind(new.name)
            .bind(new.hash)
            .bind(new.role.as_str())
            .bind(now_ms)
            .bind(new.expires_ms)
            .bind(parent)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(done.last_insert_rowid())
    }

    /// Lists an account's tokens, newest first.
    pub async fn list_tokens(&self, user: UserId) -> Result<Vec<TokenRow>, StoreError> {
        let sql = "SELECT * FROM api_tokens WHERE user_id = $1 ORDER BY id DESC";
        let rows = sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await?;
        rows.iter().map(read_token).collect()
    }

    /// Deletes a token, and with it all tokens and SSH keys created with it. Returns their number;
    /// `None` where the account has no such token.
    pub async fn delete_token(&self, user: UserId, id: i64) -> Result<Option<u64>, StoreError> {
        let mut tx = self.begin().await?;
        let sql = "WITH RECURSIVE derived (id) AS (
              SELECT $1 UNION SELECT t.id FROM api_tokens t JOIN derived d ON t.parent_id = d.id)
            SELECT (SELECT COUNT(*) FROM derived) - 1 + (SELECT COUNT(*) FROM user_keys
              WHERE token_id IN (SELECT id FROM derived)) AS n";
        let derived: i64 = sqlx::query(sql).bind(id).fetch_one(&mut *tx).await?.try_get("n")?;
        // The schema's foreign keys delete what was derived from it.
        let sql = "DELETE FROM api_tokens WHERE id = $1 AND user_id = $2";
        let done = sqlx::query(sql).bind(id).bind(user.0).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok((done.rows_affected() == 1).then(|| u64::try_from(derived).unwrap_or(0)))
    }

    /// Returns the account of a valid token, if it is active.
    pub async fn token(
        &self,
        hash: &str,
        now_ms: i64,
    ) -> Result<Option<AuthenticatedUser>, StoreError> {
        let sql = "SELECT u.*, t.id AS token_id, t.role AS cap, t.expires_ms AS until, t.used_ms
            FROM api_tokens t JOIN users u ON u.id = t.user_id
            WHERE t.hash = $1 AND ifnull(t.expires_ms > $2, 1) AND u.is_active = 1";
        let row = sqlx::query(sql).bind(hash).bind(now_ms).fetch_optional(&self.readers).await?;
        let Some(row) = row else { return Ok(None) };
        let used_ms: Option<i64> = row.try_get("used_ms")?;
        // After a clock was set back, the last use is in the future.
        if used_ms.is_none_or(|used| (now_ms - used).abs() >= USED_EVERY_MS) {
            let noted = sqlx::query("UPDATE api_tokens SET used_ms = $2 WHERE id = $1")
                .bind(row.try_get::<i64, _>("token_id")?)
                .bind(now_ms)
                .execute(&self.writer)
                .await;
            // The last use is informational: a full disk must not prevent logins.
            if let Err(error) = noted {
                tracing::warn!(%error, "could not record the use of an API token");
            }
        }
        let user = read_user(&row)?;
        let cap = role_of(&row, "cap", "api_tokens")?;
        let expires_ms = row.try_get("until")?;
        Ok(Some(AuthenticatedUser { role: user.role.min(cap), expires_ms, user }))
    }

    pub async fn create_invitation(
        &self,
        new: &NewInvitation,
        now_ms: i64,
    ) -> Result<InvitationRow, StoreError> {
        let done = sqlx::query(
            "INSERT INTO invitations (hash, shown, role, group_id, max_usage, expires_ms, created_by,
             created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&new.hash)
        .bind(&new.shown)
        .bind(new.role.as_str())
        .bind(new.group.map(|group| group.0))
        .bind(i64::from(new.max_usage))
        .bind(new.expires_ms)
        .bind(new.created_by.map(|user| user.0))
        .bind(now_ms)
        .execute(&self.writer)
        .await?;
        Ok(InvitationRow {
            id: done.last_insert_rowid(),
            shown: new.shown.clone(),
            role: new.role,
            group: new.group,
            max_usage: new.max_usage,
            usage_count: 0,
            expires_ms: new.expires_ms,
            created_by: new.created_by,
            created_ms: now_ms,
        })
    }

    /// Lists invitations, newest first.
    pub async fn list_invitations(&self) -> Result<Vec<InvitationRow>, StoreError> {
        let sql = "SELECT * FROM invitations ORDER BY id DESC";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(read_invitation).collect()
    }

    pub async fn delete_invitation(&self, id: i64) -> Result<bool, StoreError> {
        let sql = "DELETE FROM invitations WHERE id = $1";
        Ok(sqlx::query(sql).bind(id).execute(&self.writer).await?.rows_affected() == 1)
    }

    /// Revokes the invitations that the host itself created.
    pub async fn delete_setup_invitations(&self) -> Result<(), StoreError> {
        let sql = "DELETE FROM invitations WHERE created_by IS NULL";
        sqlx::query(sql).execute(&self.writer).await?;
        Ok(())
    }

    /// Checks whether an invitation is valid now.
    pub async fn check_invitation(&self, hash: &str, now_ms: i64) -> Result<(), InvitationError> {
        living_invitation(&mut *self.readers.acquire().await?, hash, now_ms).await.map(drop)
    }

    /// Uses an invitation once and creates the account, both or neither. The invitation sets its
    /// role and group.
    pub async fn redeem_invitation(
        &self,
        hash: &str,
        new: &NewUser,
        now_ms: i64,
    ) -> Result<UserRow, InvitationError> {
        let mut tx = self.begin().await?;
        let invitation = living_invitation(&mut tx, hash, now_ms).await?;
        sqlx::query("UPDATE invitations SET usage_count = usage_count + 1 WHERE id = $1")
            .bind(invitation.id)
            .execute(&mut *tx)
            .await?;
        let new = NewUser { role: invitation.role, ..new.clone() };
        let user = insert_user(&mut tx, &new, now_ms).await?;
        if let Some(group) = invitation.group {
            sqlx::query("INSERT INTO group_members (group_id, user_id) VALUES ($1, $2)")
                .bind(group.0)
                .bind(user.id.0)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(user)
    }

    /// Replaces earlier resets of the same account. `by`: the admin that creates it.
    pub async fn create_password_reset(
        &self,
        user: UserId,
        hash: &str,
        expires_ms: i64,
        by: Option<UserId>,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let sql = "DELETE FROM password_resets WHERE user_id = $1";
        sqlx::query(sql).bind(user.0).execute(&mut *tx).await?;
        let sql = "INSERT INTO password_resets (hash, user_id, expires_ms, created_by)
            VALUES ($1, $2, $3, $4)";
        sqlx::query(sql)
            .bind(hash)
            .bind(user.0)
            .bind(expires_ms)
            .bind(by.map(|by| by.0))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Uses up a reset and returns its account. A reset is invalid once its creator is no longer an
    /// admin.
    pub async fn take_password_reset(
        &self,
        hash: &str,
        now_ms: i64,
    ) -> Result<Option<UserId>, StoreError> {
        let mut tx = self.begin().await?;
        let sql =
            "DELETE FROM password_resets WHERE hash = $1 RETURNING user_id, expires_ms, created_by";
        let Some(row) = sqlx::query(sql).bind(hash).fetch_optional(&mut *tx).await? else {
            return Ok(None);
        };
        let by = row.try_get::<Option<i64>, _>("created_by")?.map(UserId);
        let alive = row.try_get::<i64, _>("expires_ms")? > now_ms
            && still_is(&mut tx, by, Role::Admin).await?;
        tx.commit().await?;
        Ok(alive.then_some(UserId(row.try_get("user_id")?)))
    }

    /// Fails with a conflict where the key is already registered. `parent`: the hash of the token
    /// that registers it, whose revocation removes the key.
    pub async fn add_user_key(
        &self,
        user: UserId,
        fingerprint: &str,
        line: &str,
        parent: Option<&str>,
        now_ms: i64,
    ) -> Result<UserKeyRow, StoreError> {
        let mut tx = self.begin().await?;
        let parent = living_token(&mut tx, parent).await?;
        let sql = "INSERT INTO user_keys (user_id, fingerprint, line, created_ms, token_id)
            VALUES ($1, $2, $3, $4, $5)";
        let done = sqlx::query(sql)
            .bind(user.0)
            .bind(fingerprint)
            .bind(line)
            .bind(now_ms)
            .bind(parent)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        let (fingerprint, line) = (fingerprint.to_owned(), line.to_owned());
        Ok(UserKeyRow { id: done.last_insert_rowid(), user, fingerprint, line, created_ms: now_ms })
    }

    pub async fn list_user_keys(&self, user: UserId) -> Result<Vec<UserKeyRow>, StoreError> {
        let sql = "SELECT * FROM user_keys WHERE user_id = $1 ORDER BY id";
        let rows = sqlx::query(sql).bind(user.0).fetch_all(&self.readers).await?;
        rows.iter().map(read_key).collect()
    }

    pub async fn delete_user_key(&self, user: UserId, id: i64) -> Result<bool, StoreError> {
        let sql = "DELETE FROM user_keys WHERE id = $1 AND user_id = $2";
        let done = sqlx::query(sql).bind(id).bind(user.0).execute(&self.writer).await?;
        Ok(done.rows_affected() == 1)
    }

    /// Returns the owner of the key with this SHA-256 fingerprint, if active.
    pub async fn user_of_key(&self, fingerprint: &str) -> Result<Option<UserRow>, StoreError> {
        let sql = "SELECT u.* FROM user_keys k JOIN users u ON u.id = k.user_id
            WHERE k.fingerprint = $1 AND u.is_active = 1";
        let row = sqlx::query(sql).bind(fingerprint).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_user).transpose()
    }

    /// Removes expired credentials.
    pub async fn prune_credentials(&self, now_ms: i64) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM sessions WHERE expires_ms < $1",
            "DELETE FROM password_resets WHERE expires_ms < $1",
            "DELETE FROM api_tokens WHERE expires_ms < $1 - 7776000000",
            "DELETE FROM invitations WHERE expires_ms < $1 - 7776000000",
        ] {
            sqlx::query(sql).bind(now_ms).execute(&self.writer).await?;
        }
        Ok(())
    }
}

impl InvitationRow {
    fn require_alive(&self, now_ms: i64) -> Result<(), InvitationError> {
        let spent = self.expires_ms <= now_ms || self.usage_count >= self.max_usage;
        if spent { Err(InvitationError::Spent) } else { Ok(()) }
    }
}

/// Returns the id of the token that a credential is derived from.
///
/// # Errors
/// The token was revoked meanwhile: nothing may be derived from it.
async fn living_token(
    connection: &mut SqliteConnection,
    hash: Option<&str>,
) -> Result<Option<i64>, StoreError> {
    let Some(hash) = hash else { return Ok(None) };
    let sql = "SELECT id FROM api_tokens WHERE hash = $1";
    let row = sqlx::query(sql).bind(hash).fetch_optional(connection).await?;
    let row = row.ok_or(StoreError::NotFound { what: "such token any more".to_owned() })?;
    Ok(Some(row.try_get("id")?))
}

/// Returns a valid invitation: not expired, not used up, and created by an account that may still
/// invite for its role.
async fn living_invitation(
    connection: &mut SqliteConnection,
    hash: &str,
    now_ms: i64,
) -> Result<InvitationRow, InvitationError> {
    let sql = "SELECT * FROM invitations WHERE hash = $1";
    let row = sqlx::query(sql).bind(hash).fetch_optional(&mut *connection).await?;
    let invitation = read_invitation(&row.ok_or(InvitationError::Unknown)?)?;
    invitation.require_alive(now_ms)?;
    let is_least = invitation.role <= Role::Viewer && invitation.group.is_none();
    let needed = if is_least { Role::Operator } else { Role::Admin };
    if !still_is(connection, invitation.created_by, needed).await? {
        return Err(InvitationError::Spent);
    }
    Ok(invitation)
}

/// Checks whether an account that issued a credential still may. `None` is the host itself, or a
/// version that did not record it.
pub(crate) async fn still_is(
    connection: &mut SqliteConnection,
    by: Option<UserId>,
    needed: Role,
) -> Result<bool, StoreError> {
    let Some(by) = by else { return Ok(true) };
    let sql = "SELECT role FROM users WHERE id = $1 AND is_active = 1";
    let row = sqlx::query(sql).bind(by.0).fetch_optional(connection).await?;
    Ok(row
        .map(|row| role_of(&row, "role", "users"))
        .transpose()?
        .is_some_and(|role| role >= needed))
}

async fn insert_session(
    connection: &mut SqliteConnection,
    new: &NewSession<'_>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO sessions (hash, user_id, created_ms, expires_ms)
        VALUES ($1, $2, $3, $4)";
    sqlx::query(sql)
        .bind(new.hash)
        .bind(new.user.0)
        .bind(new.now_ms)
        .bind(new.expires_ms)
        .execute(connection)
        .await?;
    Ok(())
}

fn role_of(row: &SqliteRow, column: &'static str, table: &'static str) -> Result<Role, StoreError> {
    let damaged = |_| StoreError::Inconsistent { table, column };
    row.try_get::<String, _>(column)?.parse().map_err(damaged)
}

fn read_token(row: &SqliteRow) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        id: row.try_get("id")?,
        parent: row.try_get("parent_id")?,
        name: row.try_get("name")?,
        role: role_of(row, "role", "api_tokens")?,
        created_ms: row.try_get("created_ms")?,
        expires_ms: row.try_get("expires_ms")?,
        used_ms: row.try_get("used_ms")?,
    })
}

fn read_invitation(row: &SqliteRow) -> Result<InvitationRow, StoreError> {
    let count =
        |column| row.try_get::<i64, _>(column).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    Ok(InvitationRow {
        id: row.try_get("id")?,
        shown: row.try_get("shown")?,
        role: role_of(row, "role", "invitations")?,
        group: row.try_get::<Option<i64>, _>("group_id")?.map(GroupId),
        max_usage: count("max_usage")?,
        usage_count: count("usage_count")?,
        expires_ms: row.try_get("expires_ms")?,
        created_by: row.try_get::<Option<i64>, _>("created_by")?.map(UserId),
        created_ms: row.try_get("created_ms")?,
    })
}

fn read_key(row: &SqliteRow) -> Result<UserKeyRow, StoreError> {
    Ok(UserKeyRow {
        id: row.try_get("id")?,
        user: UserId(row.try_get("user_id")?),
        fingerprint: row.try_get("fingerprint")?,
        line: row.try_get("line")?,
        created_ms: row.try_get("created_ms")?,
    })
}
