//! Join tokens: one row per token, its secret only as a hash, redeemed in the transaction that
//! creates the node.

use kohakuriver_model::{NodeId, NodeName, Role, UserId};
use sqlx::Row;

use crate::credentials::still_is;
use crate::{Store, StoreError};

/// The reason why a token does not admit a node.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    #[error("this host did not issue this join token")]
    Unknown,
    #[error("this join token has expired")]
    Expired,
    #[error("this join token was already used by node '{by}'")]
    Used { by: String },
    #[error("the account that created this join token is no longer an admin")]
    Void,
    #[error("a node named '{0}' has already joined")]
    NameTaken(NodeName),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RedeemError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Stores a token by the SHA-256 of its secret, hex. `readmits` names the node that a computer
    /// may rejoin as; `by` is the admin that creates it.
    pub async fn create_join_token(
        &self,
        hash: &str,
        now_ms: i64,
        expires_ms: i64,
        readmits: Option<&NodeName>,
        by: Option<UserId>,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO join_tokens (hash, created_ms, expires_ms, readmits, created_by)
            VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(sql)
            .bind(hash)
            .bind(now_ms)
            .bind(expires_ms)
            .bind(readmits.map(NodeName::as_str))
            .bind(by.map(|by| by.0))
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Uses the token up and creates the node `id`, both or neither. Returns the node's id, which
    /// is another one where the token readmits the node of this name.
    pub async fn redeem_join_token(
        &self,
        hash: &str,
        id: &NodeId,
        name: &NodeName,
        now_ms: i64,
    ) -> Result<NodeId, RedeemError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT * FROM join_tokens WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(RedeemError::Unknown)?;
        if let Some(by) = row.try_get::<Option<String>, _>("used_by")? {
            return Err(RedeemError::Used { by });
        }
        if row.try_get::<i64, _>("expires_ms")? <= now_ms {
            return Err(RedeemError::Expired);
        }
        let by = row.try_get::<Option<i64>, _>("created_by")?.map(UserId);
        if !still_is(&mut tx, by, Role::Admin).await? {
            return Err(RedeemError::Void);
        }
        let readmits = row.try_get::<Option<String>, _>("readmits")?;
        let taken = sqlx::query("SELECT id FROM nodes WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let known = match taken {
            Some(row) if readmits.as_deref() == Some(name.as_str()) => {
                Some(NodeId::new(row.try_get::<String, _>("id")?))
            }
            Some(_) => return Err(RedeemError::NameTaken(name.clone())),
            None => None,
        };
        sqlx::query("UPDATE join_tokens SET used_ms = $2, used_by = $3 WHERE hash = $1")
            .bind(hash)
            .bind(now_ms)
            .bind(name.as_str())
            .execute(&mut *tx)
            .await?;
        let node = known.clone().unwrap_or_else(|| id.clone());
        if known.is_none() {
            sqlx::query("INSERT INTO nodes (id, name, joined_ms) VALUES ($1, $2, $3)")
                .bind(node.as_str())
                .bind(name.as_str())
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(node)
    }
}
