//! Instances, with the resources they hold.

use std::collections::HashMap;

use kohakuriver_model::bounds::MAX_SPEC_BYTES;
use kohakuriver_model::{
    Demand, Desired, Holdings, InstanceId, InstanceName, InstanceSpec, Intent, NodeId, NodeName,
    Observation, Observed, OverQuota, QualifiedName, Refusal, TrustedCa, UserId, place,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::allocations::{allocate, capacities, demand_of, release, take_port};
use crate::events::{NewEvent, insert_event};
use crate::quota::check_quota;
use crate::requests::{Consent, consent, record_rule};
use crate::shares::Scope;
use crate::{Store, StoreError};

/// An instance as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceRow {
    pub id: InstanceId,
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
    /// `None`: created while login was disabled.
    pub owner: Option<Owner>,
    /// The operator or rule that approved it, where approval was needed.
    pub approval: Option<Approval>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub id: UserId,
    pub username: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    pub by: String,
    pub by_id: Option<i64>,
    pub at_ms: i64,
}

/// A create to store.
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// Derived from the clock; the store increases it if it was used before.
    pub id: InstanceId,
    /// Placement fills in its GPUs and NUMA node.
    pub spec: InstanceSpec,
    pub target: Option<NodeName>,
    pub demand: Demand,
    /// The event to record with it.
    pub actor: String,
    /// `None`: login is disabled.
    pub owner: Option<UserId>,
    pub consent: Consent,
    /// Whether an error may name others' instances.
    pub names_others: bool,
}

/// A change of an instance by an act.
#[derive(Clone, Debug)]
pub struct Change {
    pub intent: Intent,
    pub spec: InstanceSpec,
    pub event: NewEvent,
    /// The account that must not learn others' names from an error.
    pub asker: Option<UserId>,
}

/// The reason why an instance was not created or restarted.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a VPS named '{0}' already exists")]
    NameTaken(InstanceName),
    #[error(transparent)]
    OverQuota(OverQuota),
    /// A concurrent decision came first.
    #[error("this request was already decided or withdrawn")]
    Decided,
    #[error("too many of your requests are waiting for an operator")]
    TooManyRequests,
    #[error("all SSH ports are taken")]
    NoPort,
    #[error(
        "its specification would have {bytes} bytes: at most {MAX_SPEC_BYTES} can be sent to a node"
    )]
    TooLarge { bytes: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for CreateError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The instances that a text refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolve {
    One(InstanceId),
    None,
    Many(Vec<InstanceId>),
}

const SELECT: &str = "SELECT i.*, n.name AS node_name, p.port AS ssh_port,
    a.instance_id IS NOT NULL AS holds_compute, u.username AS owner_name,
    r.decided_by, r.decided_by_id, r.decided_ms
    FROM instances i JOIN nodes n ON n.id = i.node_id
    LEFT JOIN users u ON u.id = i.owner_id
    LEFT JOIN requests r ON r.id = i.id
    LEFT JOIN ssh_ports p ON p.instance_id = i.id
    LEFT JOIN allocations a ON a.instance_id = i.id";

impl Store {
    /// Lists all instances, newest first.
    pub async fn list_instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY i.id DESC"));
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        Ok(readable(&rows))
    }

    pub async fn list_instances_of(&self, node: &NodeId) -> Result<Vec<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.node_id = $1 ORDER BY i.id"));
        let rows = sqlx::query(sql).bind(node.as_str()).fetch_all(&self.readers).await?;
        Ok(readable(&rows))
    }

    pub async fn lookup_instance(&self, id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        let sql = sqlx::AssertSqlSafe(format!("{SELECT} WHERE i.id = $1"));
        let row = sqlx::query(sql).bind(id.as_i64()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_instance).transpose()
    }

    /// Resolves a text among what an account may know of: an id, a unique prefix of one,
    /// `NAME.OWNER`, or a name. A plain name, or an id's prefix, means the account's own instance
    /// first; then a share it took under that name; and another's where the scope allows it.
    pub async fn resolve_instance(&self, text: &str, scope: Scope) -> Result<Resolve, StoreError> {
        if text.is_empty() || text.len() > 120 {
            return Ok(Resolve::None);
        }
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let qualified = text.parse::<QualifiedName>().ok();
        // Columns of `rank`: 0 is an exact match, then the account's own, then others'.
        let (what, rank) = match (digits, &qualified) {
            (true, _) => (
                "CAST(n.id AS TEXT) LIKE $1 || '%'",
                "CASE WHEN CAST(n.id AS TEXT) = $1 THEN 0
                  WHEN n.owner_id = $2 THEN 1 ELSE 2 END",
            ),
            (false, Some(_)) => (
                "n.label = $4 AND n.owner_id IN
                (SELECT id FROM users WHERE username = $5)",
                "0",
            ),
            (false, None) => (
                "(n.label = $1 AND (n.owner_id = $2 OR n.owner_id IS NULL OR $6)
                  OR taken.alias = $1)",
                "CASE WHEN n.label = $1 AND n.owner_id = $2 THEN 0
                 WHEN taken.alias = $1 THEN 1 ELSE 2 END",
            ),
        };
        let sql = format!(
            "WITH reaching AS (
                 SELECT s.instance_id, a.answer, a.answered_ms >= s.created_ms AS in_time, a.alias
                 FROM shares s LEFT JOIN share_answers a
                     ON a.instance_id = s.instance_id AND a.user_id = $2
                 WHERE (s.user_id = $2 OR s.group_id IN (
                     SELECT group_id FROM group_members WHERE user_id = $2))
                 AND ifnull(a.answer, '') <> 'declined'),
             taken AS (SELECT DISTINCT instance_id, alias FROM reaching
                 WHERE answer = 'taken' AND in_time AND alias IS NOT NULL)
             SELECT n.id, {rank} AS rank FROM (
                 SELECT id, label, owner_id FROM instances
                 UNION ALL SELECT id, label, owner_id FROM requests WHERE state <> 'approved') n
             LEFT JOIN taken ON taken.instance_id = n.id
             WHERE {what} AND ($3 OR n.owner_id = $2
                 OR n.id IN (SELECT instance_id FROM reaching))
             ORDER BY rank, n.id LIMIT 6"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(text)
            .bind(scope.me.map(|user| user.0))
            .bind(scope.all)
            .bind(qualified.as_ref().map(|q| q.name.as_str()))
            .bind(qualified.as_ref().map(|q| q.owner.as_str()))
            .bind(scope.others_by_name)
            .fetch_all(&self.readers)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        let mut best = None;
        for row in rows {
            let rank: i64 = row.try_get("rank")?;
            if *best.get_or_insert(rank) == rank {
                found.push(InstanceId::from_u64(row.try_get::<i64, _>("id")? as u64));
            }
        }
        Ok(match found.as_slice() {
            [] => Resolve::None,
            [one] => Resolve::One(*one),
            [_, _, ..] => Resolve::Many(found),
        })
    }

    /// Places the instance, allocates and records it, in one transaction.
    ///
    /// `unavailable` names the nodes that cannot take work now, with the reason.
    pub async fn create_instance(
        &self,
        new: NewInstance,
        unavailable: &HashMap<NodeId, String>,
        now_ms: i64,
    ) -> Result<InstanceRow, CreateError> {
        let mut tx = self.begin().await?;
        let requested = consent(&mut tx, &new.consent, now_ms).await?;
        if let Some(name) = &new.spec.name {
            require_free_name(&mut tx, new.owner, name, requested).await?;
        }
        let asker = if new.names_others { None } else { new.owner };
        let capacities = capacities(&mut tx, unavailable, asker).await?;
        let placed = place(&new.demand, new.target.as_ref(), &capacities)?;
        let mut spec = InstanceSpec { gpus: placed.gpus, numa: placed.numa, ..new.spec };
        check_quota(&mut tx, new.owner, &Holdings::of(&spec, true), now_ms).await?;
        let id = match requested {
            Some(id) => id,
            None => next_id(&mut tx, new.id).await?,
        };
        // The id is final only here.
        if let Some(ca) = spec.ssh.as_mut().and_then(|ssh| ssh.trusted_ca.as_mut()) {
            ca.principal = TrustedCa::principal_of(id);
        }
        record_rule(&mut tx, id, new.owner, &new.consent, now_ms).await?;
        let intent = Intent::created();
        let text = json(&spec, "spec")?;
        if text.len() > MAX_SPEC_BYTES {
            return Err(CreateError::TooLarge { bytes: text.len() });
        }
        sqlx::query(
            "INSERT INTO instances (id, label, node_id, spec, desired, generation, start_generation,
             intent_ms, created_ms, owner_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)",
        )
        .bind(id.as_i64())
        .bind(spec.name.as_ref().map(InstanceName::as_str))
        .bind(placed.node.as_str())
        .bind(text)
        .bind(desired_text(intent.desired))
        .bind(intent.generation as i64)
        .bind(intent.start_generation as i64)
        .bind(now_ms)
        .bind(new.owner.map(|owner| owner.0))
        .execute(&mut *tx)
        .await?;
        allocate(&mut tx, id, &placed.node, &spec, now_ms).await?;
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

    /// Applies an act's change, if the row still has the generation that the decision was based on.
    /// Starting allocates in the same transaction; without capacity nothing changes.
    pub async fn change_instance(
        &self,
        row: &InstanceRow,
        change: &Change,
        unavailable: &HashMap<NodeId, String>,
        now_ms: i64,
    ) -> Result<(), CreateError> {
        let Change { intent, spec, event, asker } = change;
        let text = json(spec, "spec")?;
        // A row that is too large, from before the bound, can still be ended and reduced.
        if text.len() > MAX_SPEC_BYTES && text.len() > json(&row.spec, "spec")?.len() {
            return Err(CreateError::TooLarge { bytes: text.len() });
        }
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
        .bind(text)
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
            // Its own share counts as free for the new one.
            release(&mut tx, row.id, now_ms).await?;
        }
        let fresh_start = intent.start_generation > row.intent.start_generation;
        if (held && other) || (!held && fresh_start) {
            let mut capacities = capacities(&mut tx, unavailable, *asker).await?;
            if held {
                // On a drained or offline node it keeps what it has, and can change it.
                capacities.iter_mut().for_each(|room| room.unavailable = None);
            }
            place(&demand_of(spec), Some(&row.node_name), &capacities)?;
            let owner = row.owner.as_ref().map(|owner| owner.id);
            check_quota(&mut tx, owner, &Holdings::of(spec, false), now_ms).await?;
            allocate(&mut tx, row.id, &row.node_id, spec, now_ms).await?;
        }
        insert_event(&mut tx, row.id, event, now_ms).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Records a runner's observation, with its event. Compute is released when the end is proven,
    /// and the row is deleted when the deletion is. Returns false where nothing changed: an
    /// observation of another node's instance, of an older generation, or a known one.
    pub async fn record_observation(
        &self,
        id: InstanceId,
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
        let known_key = row.observation.as_ref().and_then(|before| before.ssh_host_key.clone());
        let mut kept = observation.clone();
        kept.ssh_host_key = kept.ssh_host_key.or(known_key);
        if older || row.observation.as_ref() == Some(&kept) {
            return Ok(false);
        }
        let current = observation.generation >= row.intent.generation;
        if current
            && row.intent.desired == Desired::Deleted
            && observation.state == Observed::Absent
        {
            release(&mut tx, id, now_ms).await?;
            sqlx::query("DELETE FROM requests WHERE id = $1")
                .bind(id.as_i64())
                .execute(&mut *tx)
                .await?;
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
        sqlx::query("UPDATE instances SET observation = $2, revision = revision + 1 WHERE id = $1")
            .bind(id.as_i64())
            .bind(json(&kept, "observation")?)
            .execute(&mut *tx)
            .await?;
        if let Some(event) = event {
            insert_event(&mut tx, id, &event, now_ms).await?;
        }
        if current && observation.state.is_at_rest() {
            release(&mut tx, id, now_ms).await?;
        } else if !row.holds_compute && !observation.state.is_at_rest() {
            // Started outside our control; account for it even if that over-commits the node.
            allocate(&mut tx, id, &row.node_id, &row.spec, now_ms).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// Returns the next id that was never used.
pub(crate) async fn next_id(
    tx: &mut Transaction<'_, Sqlite>,
    wanted: InstanceId,
) -> Result<InstanceId, StoreError> {
    let last: i64 =
        sqlx::query("SELECT id FROM last_id").fetch_one(&mut **tx).await?.try_get("id")?;
    let id = InstanceId::from_u64(wanted.as_u64().max(last as u64 + 1));
    sqlx::query("UPDATE last_id SET id = $1").bind(id.as_i64()).execute(&mut **tx).await?;
    Ok(id)
}

/// Checks that the owner has no instance or request of this name, except the request `itself`.
pub(crate) async fn require_free_name(
    tx: &mut Transaction<'_, Sqlite>,
    owner: Option<UserId>,
    name: &InstanceName,
    itself: Option<InstanceId>,
) -> Result<(), CreateError> {
    let sql = "SELECT 1 FROM instances WHERE label = $1 AND ifnull(owner_id, 0) = $2
        UNION ALL SELECT 1 FROM requests
        WHERE label = $1 AND owner_id = $2 AND state = 'pending' AND id <> $3";
    let taken = sqlx::query(sql)
        .bind(name.as_str())
        .bind(owner.map_or(0, |owner| owner.0))
        .bind(itself.map_or(0, InstanceId::as_i64))
        .fetch_optional(&mut **tx)
        .await?;
    if taken.is_some() { Err(CreateError::NameTaken(name.clone())) } else { Ok(()) }
}

/// Returns the readable rows. An unreadable row is logged; it must not keep the others from their
/// node.
fn readable(rows: &[SqliteRow]) -> Vec<InstanceRow> {
    let read = |row: &SqliteRow| match read_instance(row) {
        Ok(instance) => Some(instance),
        Err(error) => {
            let id = row.try_get::<i64, _>("id").unwrap_or_default();
            tracing::error!(task.id = id, %error, "unreadable instance skipped");
            None
        }
    };
    rows.iter().filter_map(read).collect()
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
    let owner = match row.try_get::<Option<i64>, _>("owner_id")? {
        Some(id) => Some(Owner { id: UserId(id), username: row.try_get("owner_name")? }),
        None => None,
    };
    let approval = match row.try_get::<Option<String>, _>("decided_by")? {
        Some(by) => Some(Approval {
            by,
            by_id: row.try_get("decided_by_id")?,
            at_ms: row.try_get("decided_ms")?,
        }),
        None => None,
    };
    Ok(InstanceRow {
        owner,
        approval,
        id: InstanceId::from_u64(row.try_get::<i64, _>("id")? as u64),
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
