//! Errors of the database, by kind.

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no {what}")]
    NotFound { what: String },
    #[error("{what} is taken")]
    Conflict { what: String },
    /// The row changed between reading and writing; read and decide again.
    #[error("the instance was changed concurrently")]
    Stale,
    #[error("the disk of the database is full")]
    DiskFull,
    #[error("table {table} has an unreadable value in column {column}")]
    Inconsistent { table: &'static str, column: &'static str },
    #[error("the database failed")]
    Driver(#[source] sqlx::Error),
}

/// SQLite's primary result code for a full disk.
const SQLITE_FULL: &str = "13";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(inner) = &error {
            if inner.code().as_deref() == Some(SQLITE_FULL) {
                return Self::DiskFull;
            }
            if inner.is_unique_violation() {
                let what = if inner.message().contains("name") { "that name" } else { "that row" };
                return Self::Conflict { what: what.to_owned() };
            }
        }
        Self::Driver(error)
    }
}
