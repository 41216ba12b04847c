//! The cluster's current health.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kohakuriver_api::{ErrorBody, Health, HealthAggregate, Node};
use kohakuriver_model::{Role, Status};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::access::Caller;
use crate::clock::iso;
use crate::host::App;
use crate::present;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(health))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct HealthQuery {
    /// Only this node: the response is then an array with its state.
    hostname: Option<String>,
}

/// The whole cluster, or an array with the node `hostname`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what the handler answers")]
enum HealthAnswer {
    Cluster(Box<Health>),
    Node(Vec<Node>),
}

/// Returns the cluster's health. A caller without a login learns only the host's version.
#[utoipa::path(get, path = "/api/health", tag = "cluster", params(HealthQuery),
    responses((status = 200, body = HealthAnswer), (status = 404, body = ErrorBody)))]
async fn health(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<HealthQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    if caller.role() < Role::Viewer {
        // Enough to detect a host and its version.
        return match query.hostname {
            Some(_) => Err(ApiError::log_in()),
            None => Ok(Json(Health::alive(env!("CARGO_PKG_VERSION"))).into_response()),
        };
    }
    let rows = app.store.list_nodes().await?;
    let nodes: Vec<Node> = rows.iter().map(|row| present::node(&app, row)).collect();
    if let Some(name) = query.hostname {
        let Some(node) = nodes.into_iter().find(|node| node.hostname == name) else {
            let detail = format!("there is no node named '{name}'");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_node", detail)
                .hint("kohakuriver node list"));
        };
        return Ok(Json([node]).into_response());
    }
    let instances = app.store.list_instances().await?;
    let running = |row: &&_| present::status_of(&app, row) == Status::Running;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nodes_online: count(nodes.iter().filter(|node| node.status == "online").count()),
        nodes_total: count(nodes.len()),
        vps_running: count(instances.iter().filter(running).count()),
        aggregate: vec![aggregate(&nodes, app.clock.now_ms())],
        nodes: vec![nodes],
        data_dir: (caller.role() >= Role::Admin).then(|| app.config.data_dir.display().to_string()),
    })
    .into_response())
}

/// Sums the online nodes; processor shares weigh by cores.
fn aggregate(nodes: &[Node], now_ms: i64) -> HealthAggregate {
    let online: Vec<&Node> = nodes.iter().filter(|node| node.status == "online").collect();
    let cores: u32 = online.iter().map(|node| node.total_cores).sum();
    let memory: u64 = online.iter().map(|node| node.memory_total_bytes).sum();
    let used: u64 = online.iter().map(|node| node.memory_used_bytes).sum();
    let busy: f32 = online.iter().map(|node| node.cpu_percent * node.total_cores as f32).sum();
    let share = |part: f64, whole: f64| if whole > 0.0 { (part / whole) as f32 } else { 0.0 };
    HealthAggregate {
        total_nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        online_nodes: u32::try_from(online.len()).unwrap_or(u32::MAX),
        total_cores: cores,
        total_mem_bytes: memory,
        used_mem_bytes: used,
        avg_cpu_percent: share(f64::from(busy), f64::from(cores)),
        avg_mem_percent: share(used as f64 * 100.0, memory as f64),
        max_avg_cpu_temp: 0.0,
        max_max_cpu_temp: 0.0,
        last_updated: iso(now_ms),
    }
}
