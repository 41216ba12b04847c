//! Usage and quota checks. Checked inside the allocating transaction, so that two concurrent
//! requests cannot both take the last of it.

use kohakuriver_model::{Holdings, InstanceId, InstanceSpec, Quota, UserId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteExecutor, Transaction};

use crate::instances::CreateError;
use crate::users::{read_group, read_user};
use crate::{Store, StoreError};

/// The window in which GPU-hours are counted.
const WINDOW_MS: i64 = 30 * 24 * 3600 * 1000;

impl Store {
    /// Returns an account's current usage.
    pub async fn holdings(&self, user: UserId, now_ms: i64) -> Result<Holdings, StoreError> {
        holdings(&self.readers, OF_USER, user.0, now_ms).await
    }

    /// Returns the total usage of a group's members.
    pub async fn group_holdings(
        &self,
        group: kohakuriver_model::GroupId,
        now_ms: i64,
    ) -> Result<Holdings, StoreError> {
        holdings(&self.readers, OF_GROUP, group.0, now_ms).await
    }
}

const OF_USER: &str = "SELECT $1";
const OF_GROUP: &str = "SELECT user_id FROM group_members WHERE group_id = $1";

/// `owners` is a query for the owners that are counted together.
async fn holdings<'c>(
    executor: impl SqliteExecutor<'c>,
    owners: &'static str,
    whose: i64,
    now_ms: i64,
) -> Result<Holdings, StoreError> {
    let sql = format!(
        "WITH owners (id) AS ({owners}),
         mine AS (SELECT id, spec FROM instances WHERE owner_id IN (SELECT id FROM owners)),
         held AS (SELECT cores, memory_bytes FROM allocations
             WHERE instance_id IN (SELECT id FROM mine))
         SELECT (SELECT COUNT(*) FROM mine) AS instances,
         (SELECT ifnull(SUM(json_extract(spec, '$.vm_disk_bytes')), 0) FROM mine) AS disk,
         (SELECT ifnull(SUM(cores), 0) FROM held) AS cores,
         (SELECT ifnull(SUM(memory_bytes), 0) FROM held) AS memory,
         (SELECT COUNT(*) FROM held WHERE cores = 0) AS no_cores,
         (SELECT COUNT(*) FROM held WHERE memory_bytes = 0) AS no_memory,
         (SELECT COUNT(*) FROM gpu_allocations
             WHERE instance_id IN (SELECT id FROM mine)) AS gpus,
         (SELECT ifnull(SUM(gpus * (ifnull(to_ms, $2) - max(from_ms, $3))), 0) FROM gpu_time
             WHERE owner_id IN (SELECT id FROM owners) AND ifnull(to_ms, $2) > $3) AS gpu_ms"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(whose)
        .bind(now_ms)
        .bind(now_ms - WINDOW_MS)
        .fetch_one(executor)
        .await?;
    read_holdings(&row)
}

fn read_holdings(row: &SqliteRow) -> Result<Holdings, StoreError> {
    let number = |column| row.try_get::<i64, _>(column).map(|n| u64::try_from(n).unwrap_or(0));
    Ok(Holdings {
        instances: number("instances")?,
        cores: number("cores")?,
        memory_bytes: number("memory")?,
        gpus: number("gpus")?,
        gpu_hours: number("gpu_ms")? / 3_600_000,
        disk_bytes: number("disk")?,
        without_core_limit: number("no_cores")?,
        without_memory_limit: number("no_memory")?,
    })
}

/// Checks whether the owner, and each of its groups, may hold this too.
pub(crate) async fn check_quota(
    tx: &mut Transaction<'_, Sqlite>,
    owner: Option<UserId>,
    asked: &Holdings,
    now_ms: i64,
) -> Result<(), CreateError> {
    let Some(owner) = owner else { return Ok(()) };
    let sql = "SELECT * FROM users WHERE id = $1";
    let row = sqlx::query(sql).bind(owner.0).fetch_optional(&mut **tx).await?;
    let Some(row) = row else { return Ok(()) };
    let user = read_user(&row)?;
    if !user.quota.is_unlimited() {
        let held = holdings(&mut **tx, OF_USER, owner.0, now_ms).await?;
        check(&user.quota, &format!("the quota of '{}'", user.username), &held, asked)?;
    }
    let sql = "SELECT g.* FROM groups g JOIN group_members m ON m.group_id = g.id
        WHERE m.user_id = $1";
    for row in sqlx::query(sql).bind(owner.0).fetch_all(&mut **tx).await? {
        let group = read_group(&row)?;
        if !group.quota.is_unlimited() {
            let held = holdings(&mut **tx, OF_GROUP, group.id.0, now_ms).await?;
            check(&group.quota, &format!("the quota of group '{}'", group.name), &held, asked)?;
        }
    }
    Ok(())
}

fn check(quota: &Quota, whose: &str, held: &Holdings, asked: &Holdings) -> Result<(), CreateError> {
    quota.check(whose, held, asked).map_err(CreateError::OverQuota)
}

/// Starts counting an instance's GPU-hours.
pub(crate) async fn start_gpu_time(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    spec: &InstanceSpec,
    now_ms: i64,
) -> Result<(), StoreError> {
    if spec.gpus.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO gpu_time (owner_id, instance_id, gpus, from_ms)
        SELECT owner_id, id, $2, $3 FROM instances WHERE id = $1 AND owner_id IS NOT NULL";
    sqlx::query(sql)
        .bind(id.as_i64())
        .bind(spec.gpus.len() as i64)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Counts the hours for the new owner from here on; the former owner's stay.
pub(crate) async fn move_gpu_time(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    now_ms: i64,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO gpu_time (owner_id, instance_id, gpus, from_ms)
        SELECT i.owner_id, i.id, COUNT(*), $2 FROM gpu_allocations g
        JOIN instances i ON i.id = g.instance_id
        WHERE i.id = $1 AND i.owner_id IS NOT NULL GROUP BY i.id";
    stop_gpu_time(tx, id, now_ms).await?;
    sqlx::query(sql).bind(id.as_i64()).bind(now_ms).execute(&mut **tx).await?;
    Ok(())
}

/// Stops counting.
pub(crate) async fn stop_gpu_time(
    tx: &mut Transaction<'_, Sqlite>,
    id: InstanceId,
    now_ms: i64,
) -> Result<(), StoreError> {
    let sql = "UPDATE gpu_time SET to_ms = $2 WHERE instance_id = $1 AND to_ms IS NULL";
    sqlx::query(sql).bind(id.as_i64()).bind(now_ms).execute(&mut **tx).await?;
    let sql = "DELETE FROM gpu_time WHERE to_ms < $1";
    sqlx::query(sql).bind(now_ms - 2 * WINDOW_MS).execute(&mut **tx).await?;
    Ok(())
}
