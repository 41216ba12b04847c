//! Nodes, and the tokens they join with.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use kohakuriver_api::{ErrorBody, JoinToken, JoinTokenRequest, Node};
use kohakuriver_link::client::HostAddress;
use kohakuriver_store::StoreError;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use crate::clock::iso;
use crate::host::App;
use crate::instances::parse_node;
use crate::{join, view};

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(get_node))
        .routes(routes!(remove_node))
        .routes(routes!(create_join_token))
}

/// All nodes by name.
#[utoipa::path(get, path = "/api/nodes", tag = "nodes", responses((status = 200, body = [Node])))]
async fn list_nodes(State(app): State<Arc<App>>) -> Result<Json<Vec<Node>>, ApiError> {
    let nodes = app.store.list_nodes().await?;
    Ok(Json(nodes.iter().map(|row| view::node(&app, row)).collect()))
}

/// One node.
#[utoipa::path(get, path = "/api/nodes/{name}", tag = "nodes", params(("name" = String, Path)),
    responses((status = 200, body = Node), (status = 404, body = ErrorBody)))]
async fn get_node(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Node>, ApiError> {
    let nodes = app.store.list_nodes().await?;
    match nodes.iter().find(|row| row.name.as_str() == name) {
        Some(row) => Ok(Json(view::node(&app, row))),
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "unknown_node",
            format!("there is no node named '{name}'"),
        )
        .hint("kohakuriver node list")),
    }
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
}

/// Removes a node: its certificate is worthless from now on.
#[utoipa::path(delete, path = "/api/nodes/{name}", tag = "nodes", params(RemoveQuery, ("name" = String, Path)),
    responses((status = 200, body = NodeMessage), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn remove_node(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Json<NodeMessage>, ApiError> {
    let Query(query) = query?;
    let name = parse_node(&text)?;
    let id = match app.store.remove_node(&name, query.force).await {
        Ok(id) => id,
        Err(StoreError::Conflict { .. }) => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "node_in_use",
                format!("node '{name}' has VPSes"),
            )
            .hint("delete them first, or let the cluster forget them with --force"));
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "unknown_node",
                format!("there is no node named '{name}'"),
            )
            .hint("kohakuriver node list"));
        }
        Err(error) => return Err(error.into()),
    };
    app.links.forget(&id);
    app.changes.notify();
    tracing::info!(node.name = %name, "node removed");
    Ok(Json(NodeMessage { message: format!("node '{name}' was removed") }))
}

/// Makes a token with which one machine can join.
#[utoipa::path(post, path = "/api/nodes/tokens", tag = "nodes", request_body = JoinTokenRequest,
    responses((status = 200, body = JoinToken), (status = 422, body = ErrorBody)))]
async fn create_join_token(
    State(app): State<Arc<App>>,
    body: Result<Json<JoinTokenRequest>, JsonRejection>,
) -> Result<Json<JoinToken>, ApiError> {
    let Json(request) = body?;
    let ttl = request.ttl_seconds.map_or(join::DEFAULT_TTL, Duration::from_secs);
    if ttl.is_zero() || ttl > join::MAX_TTL {
        let detail = "a join token lives between one second and seven days";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail));
    }
    let address = match request.address.map(|text| text.parse::<HostAddress>()).transpose() {
        Ok(address) => address,
        Err(error) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(ApiError::new(status, "invalid", error.to_string()));
        }
    };
    let (token, expires_ms) = join::create_token(&app, ttl, address).await?;
    Ok(Json(JoinToken {
        token: token.to_string(),
        expires_at: iso(expires_ms),
        address: token.address.to_string(),
    }))
}
