//! Instances, with what they hold.

use std::collections::HashMap;

use kohakuriver_model::{
    Demand, Desired, InstanceName, InstanceSpec, Intent, NodeId, NodeName, Observation, Observed,
    Refusal, TaskId, place,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::allocations::{allocate, demand_of, release, rooms, take_port};
use crate::events::{NewEvent, insert_event};
use crate::{Store, StoreError};

/// An instance as the host knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceRow {
    pub id: TaskId,
    pub node_id: NodeId,
    pub node_name: NodeName,
    pub spec: InstanceSpec,
    pub intent: Intent,
    /// When the intent last changed.
    pub intent_ms: i64,
    pub observation: Option<Observation>,
    /// Grows with every change of the row.
    pub revision: u64,
    pub created_ms: i64,
    pub ssh_port: Option<u16>,
    /// Whether it holds cores and memory now.
    pub holds_compute: bool,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// Made from the clock; the store moves it up if it was given out before.
    pub id: TaskId,
    /// Its GPUs and NUMA node are filled in by placement.
    pub spec: InstanceSpec,
    pub target: Option<NodeName>,
    pub demand: Demand,
    /// Written down with it.
    pub actor: String,
}

/// What a person's act makes of an instance.
#[derive(Clone, Debug)]
pub struct Change {
    pub intent: Intent,
    pub spec: InstanceSpec,
    pub event: NewEvent,
}

/// Why an instance was not created or not restarted.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a VPS named '{0}' exists already")]
    NameTaken(InstanceName),
    #[error("all SSH ports are taken")]
    NoPort,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CreateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What a text that a person typed refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolve {
    One(TaskId),
    None,
    Many(Vec<TaskId>),
}

const SELECT: &str = "SELECT i.*, n.name AS node_name, p.port AS ssh_port,
    a.instance_id IS NOT NULL AS holds_compute
    FROM instances i JOIN nodes n ON n.id = i.node_id
    LEFT JOIN ssh_ports p ON p.instance_id = i.id
    LEFT JOIN allocations a ON a.instance_id = i.id";

impl Store {
    /// Newest first.
    pub async fn list_instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY i.id DESC"));
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(read_instance).collect()
    }

    pub async fn list_instances_of(&self, node: &NodeId) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.node_id = $1 ORDER BY i.id"));
        let rows = sqlx::query(sql).bind(node.as_str()).fetch_all(&self.readers).await?;
        rows.iter().map(read_instance).collect()
    }

    pub async fn lookup_instance(&self, id: TaskId) -> Result<Option<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.id = $1"));
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_instance).transpose()
    }

    /// Finds what a person means: an id, a unique prefix of one, or a name.
    pub async fn resolve_instance(&self, text: &str) -> Result<Resolve, StoreError> {
        if text.is_empty() || text.len() > 63 {
            return Ok(Resolve::None);
        }
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let sql = if digits {
            "SELECT id FROM instances WHERE CAST(id AS TEXT) LIKE $1 || '%' ORDER BY id LIMIT 6"
        } else {
            "SELECT id FROM instances WHERE name = $1"
        };
        let rows = sqlx::query(sql).bind(text).fetch_all(&self.readers).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            found.push(TaskId::from_u64(row.try_get::<i64, _>("id")? as u64));
        }
        Ok(match found.as_slice() {
            [] => Resolve::None,
            [one] => Resolve::One(*one),
            many => match many.iter().find(|id| id.to_string() == text) {
                Some(exact) => Resolve::One(*exact),
                None => Resolve::Many(found),
            },
        })
    }

    /// Places the instance, takes what it needs and writes it down, in one transaction.
    ///
    /// `unavailable` names the nodes that cannot take work now, and why.
    pub async fn create_instance(
        &self,
        new: NewInstance,
        unavailable: &HashMap<NodeId, String>,
        now_ms: i64,
    ) -> Result<InstanceRow, CreateError> {
        let mut tx = self.begin().await?;
        if let Some(name) = &new.spec.name {
            let taken = sqlx::query("SELECT 1 FROM instances WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            if taken.is_some() {
                return Err(CreateError::NameTaken(name.clone()));
            }
        }
        let rooms = rooms(&mut tx, unavailable).await?;
        let placed = place(&new.demand, new.target.as_ref(), &rooms)?;
        let spec = InstanceSpec { gpus: placed.gpus, numa: placed.numa, ..new.spec };
        let last: i64 =
            sqlx::query("SELECT id FROM last_id").fetch_one(&mut *tx).await?.try_get("id")?;
        let id = TaskId::from_u64(new.id.as_u64().max(last as u64 + 1));
        sqlx::query("UPDATE last_id SET id = $1").bind(id.as_i64()).execute(&mut *tx).await?;
        let intent = Intent::created();
        sqlx::query(
            "INSERT INTO instances (id, name, node_id, spec, desired, generation, start_generation,
             intent_ms, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(id.as_i64())
        .bind(spec.name.as_ref().map(InstanceName::as_str))
        .bind(placed.node.as_str())
        .bind(json(&spec, "spec")?)
        .bind(desired_text(intent.desired))
        .bind(intent.generation as i64)
        .bind(intent.start_generation as i64)
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
        allocate(&mut tx, id, &placed.node, &spec).await?;
        if spec.ssh.is_some() {
            take_port(&mut tx, id).await?;
        }
        let event = NewEvent { kind: "create", actor: new.actor, detail: String::new() };
        insert_event(&mut tx, id, &event, now_ms).await?;
        tx.commit().await?;
        Ok(self
            .lookup_instance(id)
            .await?
            .ok_or(StoreError::NotFound { what: "row that was just written".to_owned() })?)
    }

    /// Writes what a person's act made of it, if the row still has the generation that was
    /// decided on. What should be up takes what it needs in the same transaction; where there is
    /// no room nothing changes.
    pub async fn change_instance(
        &self,
        row: &InstanceRow,
        change: &Change,
        unavailable: &HashMap<NodeId, String>,
        now_ms: i64,
    ) -> Result<(), CreateError> {
        let Change { intent, spec, event } = change;
        let mut tx = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE instances SET desired = $3, generation = $4, start_generation = $5,
             disk_generation = $6, intent_ms = $7, spec = $8, revision = revision + 1
             WHERE id = $1 AND generation = $2",
        )
        .bind(row.id.as_i64())
        .bind(row.intent.generation as i64)
        .bind(desired_text(intent.desired))
        .bind(intent.generation as i64)
        .bind(intent.start_generation as i64)
        .bind(intent.disk_generation as i64)
        .bind(now_ms)
        .bind(json(spec, "spec")?)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if changed != 1 {
            return Err(StoreError::Stale.into());
        }
        let held = sqlx::query("SELECT 1 FROM allocations WHERE instance_id = $1")
            .bind(row.id.as_i64())
            .fetch_optional(&mut *tx)
            .await?
            .is_some();
        let other = demand_of(spec) != demand_of(&row.spec);
        if held && other {
            // Its own share counts as free for what it takes instead.
            release(&mut tx, row.id).await?;
        }
        let fresh_start = intent.start_generation > row.intent.start_generation;
        if (held && other) || (!held && fresh_start) {
            let mut rooms = rooms(&mut tx, unavailable).await?;
            if held {
                // A node that is drained or away keeps what it has, and can change it.
                rooms.iter_mut().for_each(|room| room.unavailable = None);
            }
            place(&demand_of(spec), Some(&row.node_name), &rooms)?;
            allocate(&mut tx, row.id, &row.node_id, spec).await?;
        }
        insert_event(&mut tx, row.id, event, now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes down what a runner saw, with the event that this is. Compute is released when the
    /// end is proven, and the row goes when a delete is. Returns false where nothing changed: an observation of another
    /// node's instance, of an older generation, or one that is known already.
    pub async fn record_observation(
        &self,
        id: TaskId,
        node: &NodeId,
        observation: &Observation,
        event: Option<NewEvent>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.id = $1 AND i.node_id = $2"));
        let row =
            sqlx::query(sql).bind(id.as_i64()).bind(node.as_str()).fetch_optional(&mut *tx).await?;
        let Some(row) = row.as_ref().map(read_instance).transpose()? else {
            return Ok(false);
        };
        let older = row.observation.as_ref().is_some_and(|o| o.generation > observation.generation);
        if older || row.observation.as_ref() == Some(observation) {
            return Ok(false);
        }
        let current = observation.generation >= row.intent.generation;
        if current
            && row.intent.desired == Desired::Deleted
            && observation.state == Observed::Absent
        {
            sqlx::query("DELETE FROM instances WHERE id = $1")
                .bind(id.as_i64())
                .execute(&mut *tx)
                .await?;
            let actor = format!("node {}", row.node_name);
            let event = NewEvent { kind: "deleted", actor, detail: String::new() };
            insert_event(&mut tx, id, &event, now_ms).await?;
            tx.commit().await?;
            return Ok(true);
        }
        let mut kept = observation.clone();
        kept.ssh_host_key =
            kept.ssh_host_key.or_else(|| row.observation.and_then(|before| before.ssh_host_key));
        sqlx::query("UPDATE instances SET observation = $2, revision = revision + 1 WHERE id = $1")
            .bind(id.as_i64())
            .bind(json(&kept, "observation")?)
            .execute(&mut *tx)
            .await?;
        if let Some(event) = event {
            insert_event(&mut tx, id, &event, now_ms).await?;
        }
        if current && observation.state.is_at_rest() {
            release(&mut tx, id).await?;
        } else if !row.holds_compute && !observation.state.is_at_rest() {
            // Somebody started it behind our back. What runs is counted, room or no room.
            allocate(&mut tx, id, &row.node_id, &row.spec).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

fn json<T: serde::Serialize>(value: &T, column: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|_| StoreError::Inconsistent { table: "instances", column })
}

fn desired_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Paused => "paused",
        Desired::Stopped => "stopped",
        Desired::Killed => "killed",
        Desired::Deleted => "deleted",
    }
}

fn read_instance(row: &SqliteRow) -> Result<InstanceRow, StoreError> {
    let damaged = |column| StoreError::Inconsistent { table: "instances", column };
    let desired = match row.try_get::<String, _>("desired")?.as_str() {
        "running" => Desired::Running,
        "paused" => Desired::Paused,
        "stopped" => Desired::Stopped,
        "killed" => Desired::Killed,
        "deleted" => Desired::Deleted,
        _ => return Err(damaged("desired")),
    };
    let observation = match row.try_get::<Option<String>, _>("observation")? {
        None => None,
        Some(text) => Some(serde_json::from_str(&text).map_err(|_| damaged("observation"))?),
    };
    let ssh_port: Option<i64> = row.try_get("ssh_port")?;
    Ok(InstanceRow {
        id: TaskId::from_u64(row.try_get::<i64, _>("id")? as u64),
        node_id: NodeId::new(row.try_get::<String, _>("node_id")?),
        node_name: row.try_get::<String, _>("node_name")?.parse().map_err(|_| damaged("node"))?,
        spec: serde_json::from_str(&row.try_get::<String, _>("spec")?)
            .map_err(|_| damaged("spec"))?,
        intent: Intent {
            desired,
            generation: row.try_get::<i64, _>("generation")? as u64,
            start_generation: row.try_get::<i64, _>("start_generation")? as u64,
            disk_generation: row.try_get::<i64, _>("disk_generation")? as u64,
        },
        intent_ms: row.try_get("intent_ms")?,
        observation,
        revision: row.try_get::<i64, _>("revision")? as u64,
        created_ms: row.try_get("created_ms")?,
        ssh_port: ssh_port.and_then(|port| u16::try_from(port).ok()),
        holds_compute: row.try_get::<bool, _>("holds_compute")?,
    })
}
