//! Opens the database and migrates its schema.

use std::borrow::Cow;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

use crate::StoreError;

/// Readers beside the writer, for a small cluster's dashboard and a few shells at once.
const READERS: u32 = 4;

/// Space that the files reserve for a full disk: small changes, log-ins included, still work for a
/// while.
const RESERVE_BYTES: i64 = 1024 * 1024;
/// In pages of 4 KiB. The write-ahead log is checkpointed before it outgrows its reserve.
const CHECKPOINT_PAGES: &str = "200";

/// A handle to the database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    /// A connection whose commits do not wait for the disk.
    unsynced: SqlitePool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens the database at `path`, creating it (0600) if it is missing.
    ///
    /// # Errors
    /// The file cannot be used, or was written by a newer version.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite would create it with the process's umask.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| StoreError::Driver(sqlx::Error::Io(error)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit survives a power cut, because runners may have acted on it.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .busy_timeout(Duration::from_secs(5));
        let writer =
            SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        migrations(SCRIPTS)
            .run(&writer)
            .await
            .map_err(|error| StoreError::Driver(sqlx::Error::Migrate(Box::new(error))))?;
        if let Err(error) = reserve(&writer).await {
            tracing::warn!(%error, "could not reserve space for a full disk");
        }
        let unsynced = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_lazy_with(options.clone().synchronous(SqliteSynchronous::Normal));
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer, readers, unsynced })
    }

    /// Begins a change. It takes the write lock at once, so that what it reads stays true.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        begin_on(&self.writer).await
    }

    /// As [`Self::begin`], for a change that a power cut may undo: its commit reaches the kernel,
    /// so that a killed process loses nothing, but does not wait for the disk. All or nothing of it
    /// is undone, and only together with everything committed after it: the write-ahead log is one
    /// file, and the next commit that is synced takes the frames before it to the disk as well.
    ///
    /// The first of the pair holds the writer's turn, so that neither connection waits for the
    /// other inside SQLite, which would poll.
    pub(crate) async fn begin_unsynced(
        &self,
    ) -> Result<(PoolConnection<Sqlite>, Transaction<'static, Sqlite>), sqlx::Error> {
        let turn = self.writer.acquire().await?;
        Ok((turn, begin_on(&self.unsynced).await?))
    }

    /// Closes all connections, which checkpoints the write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.unsynced.close().await;
        self.writer.close().await;
    }
}

/// Makes both files larger than their content. SQLite fills free pages of the database and
/// overwrites the write-ahead log from its start; neither needs space of the file system.
///
/// # Errors
/// The disk is already full: then the database works as far as its files have space.
async fn reserve(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    let mut connection = writer.acquire().await?;
    // In two transactions: pages that one transaction takes and frees are never written.
    sqlx::query("CREATE TABLE reserve AS SELECT zeroblob($1) AS room")
        .bind(RESERVE_BYTES)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DROP TABLE reserve").execute(&mut *connection).await?;
    sqlx::query("PRAGMA wal_checkpoint(RESTART)").execute(&mut *connection).await?;
    Ok(())
}

async fn begin_on(pool: &SqlitePool) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
    match pool.begin_with("BEGIN IMMEDIATE").await {
        // A full disk made SQLite end a transaction on its own, and the driver lost count: that
        // connection is unusable.
        // connection is of no more use.
        Err(sqlx::Error::InvalidSavePointStatement) => {
            pool.acquire().await?.close().await?;
            pool.begin_with("BEGIN IMMEDIATE").await
        }
        begun => begun,
    }
}

/// Migrations in order.
const SCRIPTS: &[(i64, &str, &str)] = &[
    (1, "start", include_str!("../migrations/0001_start.sql")),
    (2, "lifecycle", include_str!("../migrations/0002_lifecycle.sql")),
    (3, "accounts", include_str!("../migrations/0003_accounts.sql")),
    (5, "consent", include_str!("../migrations/0005_consent.sql")),
    (6, "derived_credentials", include_str!("../migrations/0006_derived_credentials.sql")),
    (7, "audit", include_str!("../migrations/0007_audit.sql")),
];

fn migrations(scripts: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migrations: Vec<_> = scripts
        .iter()
        .map(|&(version, name, sql)| {
            let sql = sqlx::SqlStr::from_static(sql);
            Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql, false)
        })
        .collect();
    Migrator::with_migrations(migrations)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a database as the version before a migration left it.
    async fn before(path: &Path, version: i64) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        let older: Vec<_> = SCRIPTS.iter().copied().filter(|script| script.0 < version).collect();
        migrations(&older).run(&pool).await.unwrap();
        pool
    }

    #[tokio::test]
    async fn both_spellings_of_an_issuer_become_one_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.db");
        let pool = before(&path, 6).await;
        for (name, external) in [
            ("ann", Some("https://id.lab s-1")),
            ("bob", Some("https://id.lab/ s-2")),
            ("ann-3", Some("https://id.lab/ s-1")),
            ("eve", None),
        ] {
            let sql = "INSERT INTO users (username, display_name, role, external, created_ms)
                VALUES ($1, $1, 'user', $2, 0)";
            sqlx::query(sql).bind(name).bind(external).execute(&pool).await.unwrap();
        }
        pool.close().await;
        let store = Store::open(&path).await.unwrap();
        let users = store.list_users().await.unwrap();
        let of = |name: &str| users.iter().find(|user| user.username == name).unwrap();
        assert_eq!(of("ann").external.as_deref(), Some("https://id.lab s-1"));
        assert_eq!(of("bob").external.as_deref(), Some("https://id.lab s-2"));
        assert_eq!(of("ann-3").external.as_deref(), Some("superseded https://id.lab/ s-1"));
        assert!(of("ann").provider_ms.unwrap() > 0 && of("eve").provider_ms.is_none());
    }
}
