//! Nodes, and their join tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use kohakuriver_api::{
    ErrorBody, HealthSample, JoinToken, JoinTokenRequest, LabelChanges, Node, NodeHealth,
};
use kohakuriver_model::BackendKind;
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_store::{NodeRow, StoreError};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::access::Caller;
use crate::clock::iso;
use crate::host::App;
use crate::instances::parse_node;
use crate::runner_registry::Sample;
use crate::{join, present};

const MAX_LABEL: usize = 63;
const MAX_LABELS: usize = 64;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(get_node))
        .routes(routes!(remove_node))
        .routes(routes!(drain_node))
        .routes(routes!(undrain_node))
        .routes(routes!(label_node))
        .routes(routes!(node_health))
        .routes(routes!(create_join_token))
}

/// Lists all nodes by name.
#[utoipa::path(get, path = "/api/nodes", tag = "nodes", responses((status = 200, body = [Node])))]
async fn list_nodes(State(app): State<Arc<App>>) -> Result<Json<Vec<Node>>, ApiError> {
    let nodes = app.store.list_nodes().await?;
    Ok(Json(nodes.iter().map(|row| present::node(&app, row)).collect()))
}

/// Returns a node.
#[utoipa::path(get, path = "/api/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ErrorBody)))]
async fn get_node(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Node>, ApiError> {
    Ok(Json(present::node(&app, &find(&app, &name).await?)))
}

/// Reads a node's row by its name.
pub async fn find(app: &App, name: &str) -> Result<NodeRow, ApiError> {
    let nodes = app.store.list_nodes().await?;
    nodes.into_iter().find(|row| row.name.as_str() == name).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> ApiError {
    let detail = format!("there is no node named '{name}'");
    ApiError::new(StatusCode::NOT_FOUND, "unknown_node", detail).hint("kohakuriver node list")
}

/// Drains a node: it gets no new instances. Those it has stay and can be restarted.
#[utoipa::path(post, path = "/api/nodes/{name}/drain", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ErrorBody)))]
async fn drain_node(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Node>, ApiError> {
    set_drained(&app, &name, true).await
}

/// Lets a drained node take new instances again.
#[utoipa::path(post, path = "/api/nodes/{name}/undrain", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ErrorBody)))]
async fn undrain_node(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Node>, ApiError> {
    set_drained(&app, &name, false).await
}

async fn set_drained(app: &App, name: &str, drained: bool) -> Result<Json<Node>, ApiError> {
    let row = find(app, name).await?;
    app.store.set_drained(&row.name, drained).await?;
    tracing::info!(node.name = name, drained, "node drain state changed");
    app.changes.notify();
    Ok(Json(present::node(app, &find(app, name).await?)))
}

/// Sets and removes labels. `vps create` can require labels.
#[utoipa::path(patch, path = "/api/nodes/{name}/labels", tag = "nodes", params(("name" = String, Path)),
    request_body = LabelChanges,
    responses((status = 200, body = Node), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn label_node(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    body: Result<Json<LabelChanges>, JsonRejection>,
) -> Result<Json<Node>, ApiError> {
    let Json(changes) = body?;
    let row = find(&app, &name).await?;
    let mut labels = row.labels;
    for (key, value) in changes.labels {
        match value {
            None => {
                labels.remove(&key);
            }
            Some(value) if is_label(&key, MAX_LABEL) && is_label(&value, MAX_LABEL) => {
                labels.insert(key, value);
            }
            Some(value) => {
                let detail = format!("'{key}={value}' is not a label");
                return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
                    .hint("use letters, digits and . _ / - in key and value, at most 63 of them"));
            }
        }
    }
    if labels.len() > MAX_LABELS {
        let detail = format!("a node has at most {MAX_LABELS} labels");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail));
    }
    app.store.set_labels(&row.name, &labels).await?;
    app.changes.notify();
    Ok(Json(present::node(&app, &find(&app, &name).await?)))
}

fn is_label(text: &str, most: usize) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
    !text.is_empty() && text.len() <= most && text.bytes().all(plain)
}

/// Returns the node's metrics of the last hour.
#[utoipa::path(get, path = "/api/nodes/{name}/health", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = NodeHealth), (status = 404, body = ErrorBody)))]
async fn node_health(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<NodeHealth>, ApiError> {
    let row = find(&app, &name).await?;
    let hour_ago = app.clock.now_ms() - 3600 * 1000;
    let samples = app
        .runners
        .history(&row.id)
        .into_iter()
        .filter(|sample| sample.at_ms >= hour_ago)
        .map(|Sample { at_ms, metrics }| HealthSample {
            at_ms,
            cpu_percent: metrics.cpu_percent,
            memory_used_bytes: metrics.memory_used_bytes,
            memory_total_bytes: metrics.memory_total_bytes,
            load_1m: metrics.load_1m,
        })
        .collect();
    Ok(Json(NodeHealth { hostname: name, status: present::node(&app, &row).status, samples }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Also a node that has VPSes; the cluster forgets them.
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct NodeMessage {
    message: String,
    /// Containers that stay on the node; the cluster no longer manages them.
    left_behind: Vec<String>,
    /// Ids of virtual machines that stay there likewise.
    left_machines: Vec<String>,
}

/// Removes a node and revokes its certificate.
#[utoipa::path(delete, path = "/api/nodes/{name}", tag = "nodes", params(RemoveQuery, ("name" = String, Path)),
    responses((status = 200, body = NodeMessage), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn remove_node(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Json<NodeMessage>, ApiError> {
    let Query(query) = query?;
    let name = parse_node(&text)?;
    let row = find(&app, &text).await?;
    let left: Vec<_> = app.store.list_instances_of(&row.id).await?;
    let id = match app.store.remove_node(&name, query.force, app.clock.now_ms()).await {
        Ok(id) => id,
        Err(StoreError::Conflict { .. }) => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "node_in_use",
                format!("node '{name}' has VPSes"),
            )
            .hint("delete them first, or remove them from the cluster with --force"));
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(unknown(&text));
        }
        Err(error) => return Err(error.into()),
    };
    app.runners.forget(&id);
    app.changes.notify();
    tracing::info!(node.name = %name, "node removed");
    left.iter().for_each(|row| app.runners.forget_task(row.id));
    let (machines, containers): (Vec<_>, Vec<_>) =
        left.iter().partition(|row| row.spec.backend() == BackendKind::Qemu);
    Ok(Json(NodeMessage {
        message: format!("node '{name}' was removed"),
        left_behind: containers.iter().map(|row| format!("kohakuriver-vps-{}", row.id)).collect(),
        left_machines: machines.iter().map(|row| row.id.to_string()).collect(),
    }))
}

/// Creates a token with which one node can join, while the account that creates it is an admin.
#[utoipa::path(post, path = "/api/nodes/tokens", tag = "nodes", request_body = JoinTokenRequest,
    responses((status = 200, body = JoinToken), (status = 422, body = ErrorBody)))]
async fn create_join_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Result<Json<JoinTokenRequest>, JsonRejection>,
) -> Result<Json<JoinToken>, ApiError> {
    let Json(request) = body?;
    let ttl = request.ttl_seconds.map_or(join::DEFAULT_TTL, Duration::from_secs);
    if ttl.is_zero() || ttl > join::MAX_TTL {
        let detail = "a join token's lifetime is between one second and seven days";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail));
    }
    let address = match request.address.map(|text| text.parse::<HostAddress>()).transpose() {
        Ok(address) => address,
        Err(error) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(ApiError::new(status, "invalid", error.to_string()));
        }
    };
    let (token, expires_ms) =
        join::create_token(&app, ttl, address, None, caller.user_id()).await?;
    Ok(Json(JoinToken {
        token: token.to_string(),
        expires_at: iso(expires_ms),
        address: token.address.to_string(),
    }))
}
