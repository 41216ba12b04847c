//! Snapshots of a VPS. `{which}` in a path is a tag, a name or `latest`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use kohakuriver_api::{
    ErrorBody, LatestSnapshot, Message, Snapshot, SnapshotCreated, SnapshotList, SnapshotsDeleted,
};
use kohakuriver_model::InstanceId;
use kohakuriver_runner_link::protocol::Snapshot as LinkSnapshot;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::lifecycle::accepted;
use super::vps::authorize_named;
use crate::access::{Caller, Permission};
use crate::clock::iso;
use crate::host::App;
use crate::instances::{InstanceError, snapshots, validate};

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_snapshots, create_snapshot, delete_all_snapshots))
        .routes(routes!(latest_snapshot))
        .routes(routes!(delete_snapshot))
        .routes(routes!(restore_snapshot))
}

/// Lists all snapshots, newest first.
#[utoipa::path(get, path = "/api/vps/snapshots/{task}", tag = "snapshots", params(("task" = String, Path)),
    responses((status = 200, body = SnapshotList), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list_snapshots(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<SnapshotList>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let found = snapshots::list(&app, &access).await?;
    let id = access.task_id();
    let snapshots: Vec<_> = found.into_iter().map(|found| to_api(id, found)).collect();
    let count = snapshots.len() as u64;
    Ok(Json(SnapshotList { task_id: id.as_u64(), snapshots, count }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CreateQuery {
    message: Option<String>,
    /// Lower-case letters, digits and hyphens.
    name: Option<String>,
}

/// Creates a snapshot of the disk, whether the VPS runs or not. Responds when it is complete.
#[utoipa::path(post, path = "/api/vps/snapshots/{task}", tag = "snapshots", params(CreateQuery, ("task" = String, Path)),
    responses((status = 200, body = SnapshotCreated), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn create_snapshot(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<CreateQuery>, QueryRejection>,
) -> Result<Json<SnapshotCreated>, ApiError> {
    let Query(query) = query?;
    let name = validate::snapshot_name(query.name)?;
    let message = validate::snapshot_message(query.message)?;
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    let found = snapshots::create(&app, &caller, &access, name, message).await?;
    let snapshot = to_api(access.task_id(), found);
    let message = "Snapshot created".to_owned();
    Ok(Json(SnapshotCreated { message, tag: snapshot.tag.clone(), snapshot }))
}

/// Returns the newest snapshot's tag.
#[utoipa::path(get, path = "/api/vps/snapshots/{task}/latest", tag = "snapshots", params(("task" = String, Path)),
    responses((status = 200, body = LatestSnapshot), (status = 404, body = ErrorBody)))]
async fn latest_snapshot(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<LatestSnapshot>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let found = snapshots::list(&app, &access).await?;
    let id = access.task_id();
    let Some(newest) = found.first() else {
        let (name, which) = (text, "latest".to_owned());
        return Err(InstanceError::NoSnapshot { name, which }.into());
    };
    Ok(Json(LatestSnapshot { task_id: id.as_u64(), tag: newest.tag.to_string() }))
}

/// Deletes a snapshot that no disk and no other snapshot depends on.
#[utoipa::path(delete, path = "/api/vps/snapshots/{task}/{which}", tag = "snapshots",
    params(("task" = String, Path), ("which" = String, Path)),
    responses((status = 200, body = SnapshotsDeleted), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn delete_snapshot(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((text, which)): Path<(String, String)>,
) -> Result<Json<SnapshotsDeleted>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    snapshots::delete(&app, &caller, &access, &which).await?;
    let message = format!("Snapshot {which} deleted");
    Ok(Json(SnapshotsDeleted { message, deleted_count: 1 }))
}

/// Deletes all snapshots that no disk and no other snapshot depends on.
#[utoipa::path(delete, path = "/api/vps/snapshots/{task}", tag = "snapshots", params(("task" = String, Path)),
    responses((status = 200, body = SnapshotsDeleted), (status = 404, body = ErrorBody)))]
async fn delete_all_snapshots(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<SnapshotsDeleted>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    let deleted_count = snapshots::delete_all(&app, &caller, &access).await?;
    let message = format!("{deleted_count} snapshots deleted");
    Ok(Json(SnapshotsDeleted { message, deleted_count }))
}

/// Starts the VPS again on the snapshot's disk; the current content of its disk is lost.
#[utoipa::path(post, path = "/api/vps/snapshots/{task}/{which}/restore", tag = "snapshots",
    params(("task" = String, Path), ("which" = String, Path)),
    responses((status = 202, body = Message), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn restore_snapshot(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((text, which)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Message>), ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::Change).await?;
    let row = snapshots::restore(&app, &caller, &access, Some(&which)).await?;
    Ok(accepted(&app, &row, "is being restored"))
}

fn to_api(id: InstanceId, found: LinkSnapshot) -> Snapshot {
    let at_ms = i64::try_from(found.tag).unwrap_or(0).saturating_mul(1000);
    Snapshot {
        tag: found.tag.to_string(),
        task_id: id.as_u64(),
        timestamp: found.tag,
        size: found.size_bytes,
        created_at: iso(at_ms),
        name: found.name,
        message: found.message,
        own_size: found.own_bytes,
        in_use: found.in_use,
    }
}
