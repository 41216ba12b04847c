//! Nodes.

use std::collections::BTreeMap;

use kohakuriver_model::{Inventory, NodeId, NodeName};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::{Store, StoreError};

/// A joined node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    pub id: NodeId,
    pub name: NodeName,
    pub joined_ms: i64,
    /// `None` until its runner's first hello.
    pub inventory: Option<Inventory>,
    pub runner_version: Option<String>,
    pub clock_skew_ms: i64,
    pub seen_ms: Option<i64>,
    pub cores_taken: u32,
    pub memory_taken: u64,
    pub instances: u32,
    /// Running instances without a limit of cores: they share the rest.
    pub without_limit: u32,
    /// Whether it takes no new instances.
    pub drained: bool,
    pub labels: BTreeMap<String, String>,
    /// UUIDs of the allocated GPUs.
    pub gpus_taken: Vec<String>,
}

const SELECT: &str = "SELECT n.*,
    (SELECT COALESCE(SUM(a.cores), 0) FROM allocations a WHERE a.node_id = n.id) AS cores_taken,
    (SELECT COALESCE(SUM(a.memory_bytes), 0) FROM allocations a WHERE a.node_id = n.id) AS memory_taken,
    (SELECT COUNT(*) FROM instances i WHERE i.node_id = n.id) AS instances,
    (SELECT COUNT(*) FROM allocations a WHERE a.node_id = n.id AND a.cores = 0) AS without_limit,
    (SELECT GROUP_CONCAT(g.gpu) FROM gpu_allocations g WHERE g.node_id = n.id) AS gpus_taken
    FROM nodes n ORDER BY n.name";

impl Store {
    pub async fn list_nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        let rows = sqlx::query(SELECT).fetch_all(&self.readers).await?;
        rows.iter().map(read_node).collect()
    }

    pub(crate) async fn list_nodes_in(
        connection: &mut sqlx::SqliteConnection,
    ) -> Result<Vec<NodeRow>, StoreError> {
        let rows = sqlx::query(SELECT).fetch_all(connection).await?;
        rows.iter().map(read_node).collect()
    }

    /// Returns the name of a node that may connect; `None` once it was removed.
    pub async fn lookup_node_name(&self, id: &NodeId) -> Result<Option<NodeName>, StoreError> {
        let row = sqlx::query("SELECT name FROM nodes WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| read_name(&row)).transpose()
    }

    /// Records a runner's hello.
    pub async fn record_hello(
        &self,
        id: &NodeId,
        inventory: &Inventory,
        runner_version: &str,
        clock_skew_ms: i64,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE nodes SET inventory = $2, runner_version = $3, clock_skew_ms = $4, seen_ms = $5
             WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(json(inventory)?)
        .bind(runner_version)
        .bind(clock_skew_ms)
        .bind(now_ms)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Records a node's inventory. Returns false where it is unchanged.
    pub async fn record_inventory(
        &self,
        id: &NodeId,
        inventory: &Inventory,
    ) -> Result<bool, StoreError> {
        let text = json(inventory)?;
        let known = "SELECT 1 FROM nodes WHERE id = $1 AND inventory = $2";
        let known = sqlx::query(known).bind(id.as_str()).bind(&text);
        if known.fetch_optional(&self.readers).await?.is_some() {
            return Ok(false);
        }
        sqlx::query("UPDATE nodes SET inventory = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(text)
            .execute(&self.writer)
            .await?;
        Ok(true)
    }

    /// Records when a node was last heard, so that `last_heartbeat` survives a restart of the host.
    pub async fn record_seen(&self, id: &NodeId, seen_ms: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE nodes SET seen_ms = $2 WHERE id = $1")
            .bind(id.as_str())
            .bind(seen_ms)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Drains or undrains a node: a drained node keeps its instances and takes no new ones.
    pub async fn set_drained(&self, name: &NodeName, drained: bool) -> Result<(), StoreError> {
        let done = sqlx::query("UPDATE nodes SET drained = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(drained)
            .execute(&self.writer)
            .await?;
        changed_one(name, done.rows_affected())
    }

    pub async fn set_labels(
        &self,
        name: &NodeName,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let labels = serde_json::to_string(labels)
            .map_err(|_| StoreError::Inconsistent { table: "nodes", column: "labels" })?;
        let done = sqlx::query("UPDATE nodes SET labels = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(labels)
            .execute(&self.writer)
            .await?;
        changed_one(name, done.rows_affected())
    }

    /// Removes a node. With `force` its instances' rows are deleted too: what is left on the node
    /// is no longer managed.
    pub async fn remove_node(
        &self,
        name: &NodeName,
        force: bool,
        now_ms: i64,
    ) -> Result<NodeId, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT id FROM nodes WHERE name = $1")
            .bind(name.as_str())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| StoreError::NotFound { what: format!("node named '{name}'") })?;
        let id: String = row.try_get("id")?;
        let count: i64 = sqlx::query("SELECT COUNT(*) AS n FROM instances WHERE node_id = $1")
            .bind(&id)
            .fetch_one(&mut *tx)
            .await?
            .try_get("n")?;
        if count > 0 && !force {
            return Err(StoreError::Conflict {
                what: format!("node '{name}' has {count} VPSes and"),
            });
        }
        for sql in [
            "UPDATE gpu_time SET to_ms = $2 WHERE to_ms IS NULL
             AND instance_id IN (SELECT id FROM instances WHERE node_id = $1)",
            "DELETE FROM requests WHERE $2 > 0
             AND id IN (SELECT id FROM instances WHERE node_id = $1)",
        ] {
            sqlx::query(sql).bind(&id).bind(now_ms).execute(&mut *tx).await?;
        }
        sqlx::query("DELETE FROM instances WHERE node_id = $1").bind(&id).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM nodes WHERE id = $1").bind(&id).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(NodeId::new(id))
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|_| StoreError::Inconsistent { table: "nodes", column: "inventory" })
}

fn changed_one(name: &NodeName, rows: u64) -> Result<(), StoreError> {
    if rows == 1 {
        return Ok(());
    }
    Err(StoreError::NotFound { what: format!("node named '{name}'") })
}

fn read_name(row: &SqliteRow) -> Result<NodeName, StoreError> {
    row.try_get::<String, _>("name")?
        .parse()
        .map_err(|_| StoreError::Inconsistent { table: "nodes", column: "name" })
}

fn read_node(row: &SqliteRow) -> Result<NodeRow, StoreError> {
    let damaged = |column| StoreError::Inconsistent { table: "nodes", column };
    // Its runner's next hello brings it again.
    let inventory = row
        .try_get::<Option<String>, _>("inventory")?
        .and_then(|text| serde_json::from_str(&text).ok());
    Ok(NodeRow {
        id: NodeId::new(row.try_get::<String, _>("id")?),
        name: read_name(row)?,
        joined_ms: row.try_get("joined_ms")?,
        inventory,
        runner_version: row.try_get("runner_version")?,
        clock_skew_ms: row.try_get("clock_skew_ms")?,
        seen_ms: row.try_get("seen_ms")?,
        cores_taken: u32::try_from(row.try_get::<i64, _>("cores_taken")?)
            .map_err(|_| damaged("cores"))?,
        memory_taken: row.try_get::<i64, _>("memory_taken")? as u64,
        instances: row.try_get::<i64, _>("instances")? as u32,
        without_limit: row.try_get::<i64, _>("without_limit")? as u32,
        drained: row.try_get("drained")?,
        labels: serde_json::from_str(&row.try_get::<String, _>("labels")?)
            .map_err(|_| damaged("labels"))?,
        gpus_taken: row
            .try_get::<Option<String>, _>("gpus_taken")?
            .map(|list| list.split(',').map(ToOwned::to_owned).collect())
            .unwrap_or_default(),
    })
}
