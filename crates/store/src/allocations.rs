//! Resources held by instances: cores, memory, GPUs, NUMA nodes, SSH ports.
//!
//! ```text
//!  create, restart, restore --> held <-- running, paused, starting, lost
//!  stopped, killed, failed (proven by the node) --> released: name, disk, SSH port stay
//!  deleted (proven) --> nothing stays
//! ```
//!
//! Rows are taken in the transaction that decides on them, and released only when the node has
//! proven the end, whatever the status is meanwhile.

use std::collections::HashMap;

use kohakuriver_model::placement::{GpuCapacity, NumaRoom};
use kohakuriver_model::{
    Demand, GpuDemand, GpuRef, GpuRuntime, InstanceId, InstanceSpec, NodeCapacity, NodeId, NumaPin,
    UserId,
};
use sqlx::{Row, Sqlite, Transaction};

use crate::instances::CreateError;
use crate::quota::{start_gpu_time, stop_gpu_time};
use crate::{Store, StoreError};

/// The first port given to VPSes with SSH; documented, so it must not change.
const FIRST_SSH_PORT: i64 = 9000;

/// The demand of an instance that was placed before on its node.
pub(crate) fn demand_of(spec: &InstanceSpec) -> Demand {
    let gpus = match spec.gpus.as_slice() {
        [] => GpuDemand::None,
        gpus => GpuDemand::Same(gpus.to_vec()),
    };
    Demand {
        cores: spec.cores,
        memory_bytes: spec.memory_bytes.unwrap_or(0),
        gpus,
        numa: spec.numa.as_ref().map(|pin| pin.node),
        backend: spec.backend(),
    }
}

/// Reads all nodes for placement, inside the transaction that will allocate. `asker` sees the names
/// of its own instances only.
pub(crate) async fn capacities(
    tx: &mut Transaction<'_, Sqlite>,
    unavailable: &HashMap<NodeId, String>,
    asker: Option<UserId>,
) -> Result<Vec<NodeCapacity>, StoreError> {
    let nodes = Store::list_nodes_in(tx).await?;
    let owners = gpu_owners(tx, asker).await?;
    let pinned = pinned(tx).await?;
    let capacities = nodes.into_iter().map(|node| {
        let reason = match &node.inventory {
            None => Some("has never been seen since it joined".to_owned()),
            Some(_) if node.drained => {
                Some("is drained: it takes no new work (kohakuriver node undrain)".to_owned())
            }
            Some(_) => unavailable.get(&node.id).cloned(),
        };
        let inventory = node.inventory.as_ref();
        let gpus = inventory.map(|inventory| inventory.gpus.as_slice()).unwrap_or_default();
        let numa = inventory.map(|inventory| inventory.numa.as_slice()).unwrap_or_default();
        let ready = inventory.is_some_and(|i| i.gpu_runtime == GpuRuntime::Ready);
        NodeCapacity {
            unavailable: reason,
            cores: inventory.map_or(0, |inventory| inventory.cores),
            cores_taken: node.cores_taken,
            memory_bytes: inventory.map_or(0, |inventory| inventory.memory_bytes),
            memory_taken: node.memory_taken,
            gpus: gpus
                .iter()
                .map(|gpu| GpuCapacity {
                    gpu: GpuRef { index: gpu.index, uuid: gpu.uuid.clone() },
                    numa: gpu.numa,
                    taken_by: owners.get(&(node.id.clone(), gpu.uuid.clone())).cloned(),
                    for_containers: gpu.is_for_containers(),
                    no_container: gpu.no_container.clone(),
                    no_machine: gpu.vfio.refusal.clone(),
                    peers: gpu.vfio.peers.clone(),
                })
                .collect(),
            no_gpu_runtime: (!ready).then(|| NO_GPU_RUNTIME.to_owned()),
            numa: numa
                .iter()
                .map(|numa| {
                    let taken = pinned.get(&(node.id.clone(), numa.id)).copied();
                    let (cores_taken, memory_taken) = taken.unwrap_or_default();
                    NumaRoom {
                        pin: NumaPin { node: numa.id, cpus: numa.cpus.clone() },
                        memory_bytes: numa.memory_bytes,
                        cores_taken,
                        memory_taken,
                    }
                })
                .collect(),
            name: node.name,
            id: node.id,
        }
    });
    Ok(capacities.collect())
}

const NO_GPU_RUNTIME: &str = "has GPUs that its Docker engine cannot give to containers: install \
    nvidia-container-toolkit there, then nvidia-ctk runtime configure --runtime=docker and restart \
    Docker";

/// Returns the names of the instances that have GPUs, as far as `asker` may know them.
async fn gpu_owners(
    tx: &mut Transaction<'_, Sqlite>,
    asker: Option<UserId>,
) -> Result<HashMap<(NodeId, String), String>, StoreError> {
    let sql = "SELECT g.node_id, g.gpu, i.id, i.label, ifnull(i.owner_id = $1, $1 IS NULL) AS known
        FROM gpu_allocations g
        JOIN instances i ON i.id = g.instance_id";
    let rows = sqlx::query(sql).bind(asker.map(|user| user.0)).fetch_all(&mut **tx).await?;
    let mut owners = HashMap::new();
    for row in rows {
        let node = NodeId::new(row.try_get::<String, _>("node_id")?);
        let owner = match row.try_get::<Option<String>, _>("label")? {
            _ if !row.try_get::<bool, _>("known")? => "another account".to_owned(),
            Some(name) => format!("VPS '{name}'"),
            None => format!("VPS {}", row.try_get::<i64, _>("id")?),
        };
        owners.insert((node, row.try_get("gpu")?), owner);
    }
    Ok(owners)
}

/// Sums cores and memory promised to instances that are pinned to NUMA nodes.
async fn pinned(
    tx: &mut Transaction<'_, Sqlite>,
) -> Result<HashMap<(NodeId, u32), (u32, u64)>, StoreError> {
    let sql = "SELECT node_id, numa, SUM(cores) AS cores, SUM(memory_bytes) AS memory
        FROM allocations WHERE numa IS NOT NULL GROUP BY node_id, numa";
    let rows = sqlx::query(sql).fetch_all(&mut **tx).await?;
    let mut pinned = HashMap::new();
    for row in rows {
        let node = NodeId::new(row.try_get::<String, _>("node_id")?);
        let numa = row.try_get::<i64, _>("numa")? as u32;
        let taken =
            (row.try_get::<i64, _>("cores")? as u32, row.try_get::<i64, _>("memory")? as u64);
        pinned.insert((node, numa), taken);
    }
    Ok(pinned)
}

/// Records an instance's allocation.
pub(crate) async fn allocate(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    node: &NodeId,
    spec: &InstanceSpec,
    now_ms: i64,
) -> Result<(), StoreError> {
    start_gpu_time(tx, id, spec, now_ms).await?;
    sqlx::query(
        "INSERT INTO allocations (instance_id, node_id, cores, memory_bytes, numa)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.as_i64())
    .bind(node.as_str())
    .bind(i64::from(spec.cores))
    .bind(spec.memory_bytes.unwrap_or(0) as i64)
    .bind(spec.numa.as_ref().map(|pin| i64::from(pin.node)))
    .execute(&mut **tx)
    .await?;
    for gpu in &spec.gpus {
        // Placement has checked before. Only an instance started outside our control can find its
        // card allocated to another; the card then stays with the instance it was promised to.
        let sql = "INSERT INTO gpu_allocations (node_id, gpu, instance_id) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING";
        sqlx::query(sql)
            .bind(node.as_str())
            .bind(&gpu.uuid)
            .bind(id.as_i64())
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

/// Releases an instance's allocation, except the SSH port.
pub(crate) async fn release(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    now_ms: i64,
) -> Result<(), StoreError> {
    stop_gpu_time(tx, id, now_ms).await?;
    sqlx::query("DELETE FROM allocations WHERE instance_id = $1")
        .bind(id.as_i64())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Takes the lowest free port.
pub(crate) async fn take_port(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
) -> Result<(), CreateError> {
    let row = sqlx::query(
        "SELECT MIN(c.port) AS port FROM (
             SELECT $1 AS port UNION ALL SELECT port + 1 FROM ssh_ports) c
         WHERE c.port <= 65535 AND NOT EXISTS (SELECT 1 FROM ssh_ports p WHERE p.port = c.port)",
    )
    .bind(FIRST_SSH_PORT)
    .fetch_one(&mut **tx)
    .await?;
    let port: i64 = row.try_get::<Option<i64>, _>("port")?.ok_or(CreateError::NoPort)?;
    sqlx::query("INSERT INTO ssh_ports (port, instance_id) VALUES ($1, $2)")
        .bind(port)
        .bind(id.as_i64())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
