//! Base images of virtual machines on a node, and the files of machines there.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use kohakuriver_api::{
    ErrorBody, VmImage, VmImages, VmInstance, VmInstanceDeleted, VmInstances, VmNode, VmSummary,
    VmTask,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::node;
use crate::access::Caller;
use crate::host::App;
use crate::instances::machines::{self, MachineFiles, NodeMachines};
use crate::present;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(list_vm_images))
        .routes(routes!(list_vm_instances))
        .routes(routes!(delete_vm_instance))
}

/// Lists the base images that a node sees in shared storage.
#[utoipa::path(get, path = "/api/vm/images/{hostname}", tag = "machines", params(("hostname" = String, Path)),
    responses((status = 200, body = VmImages), (status = 404, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn list_vm_images(
    State(app): State<Arc<App>>,
    Path(hostname): Path<String>,
) -> Result<Json<VmImages>, ApiError> {
    let node = node::find(&app, &hostname).await?;
    let (images_dir, images) = machines::images(&app, &node).await?;
    let to_api = |image: kohakuriver_runner_link::protocol::VmImage| VmImage {
        name: image.name.to_string(),
        filename: image.file,
        size_bytes: image.size_bytes,
        modified_at: image.modified_ms as f64 / 1000.0,
        virtual_size_bytes: image.virtual_bytes,
    };
    Ok(Json(VmImages { images: images.into_iter().map(to_api).collect(), images_dir }))
}

/// Lists the files of virtual machines on all nodes, including orphans without a VPS.
#[utoipa::path(get, path = "/api/vps/vm-instances", tag = "machines",
    responses((status = 200, body = VmInstances)))]
async fn list_vm_instances(State(app): State<Arc<App>>) -> Result<Json<VmInstances>, ApiError> {
    let all = machines::list(&app).await?;
    let nodes: Vec<_> = all.into_iter().map(|node| to_api(&app, node)).collect();
    let mut summary = VmSummary::default();
    for node in &nodes {
        let instances = node.instances.as_deref().unwrap_or_default();
        summary.total_instances += instances.len() as u64;
        summary.orphaned_count +=
            instances.iter().filter(|i| i.db_status == ORPHANED).count() as u64;
        summary.total_disk_usage_bytes += node.total_disk_usage_bytes;
    }
    Ok(Json(VmInstances { nodes, summary }))
}

const ORPHANED: &str = "orphaned";

fn to_api(app: &App, node: NodeMachines) -> VmNode {
    let hostname = node.node.name.to_string();
    match node.machines {
        Ok(machines) => VmNode {
            hostname,
            status: "online".to_owned(),
            total_disk_usage_bytes: machines.iter().map(|files| files.machine.disk_bytes).sum(),
            instances: Some(machines.into_iter().map(|files| instance(app, files)).collect()),
            instances_dir: node.dir,
            error: None,
        },
        Err(error) => VmNode {
            hostname,
            status: "unreachable".to_owned(),
            error: Some(error.to_string()),
            ..VmNode::default()
        },
    }
}

fn instance(app: &App, MachineFiles { machine, row }: MachineFiles) -> VmInstance {
    let task = row.map(|row| present::task(app, &row));
    VmInstance {
        task_id: machine.task_id.to_string(),
        disk_usage_bytes: machine.disk_bytes,
        files: machine.files,
        qemu_running: machine.pid.is_some(),
        qemu_pid: machine.pid,
        in_task_store: machine.known,
        db_status: task.as_ref().map_or(ORPHANED.to_owned(), |task| task.status.clone()),
        task_metadata: task.map(|task| VmTask {
            status: task.status,
            name: task.name,
            owner_id: task.owner_id,
            owner_username: task.owner_username,
            vm_image: task.vm_image,
            required_cores: task.required_cores,
            ssh_port: task.ssh_port,
            submitted_at: task.submitted_at,
            assigned_node: task.assigned_node,
        }),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    /// The node that holds it; required where no VPS has this id.
    hostname: Option<String>,
    /// Also a running one.
    #[serde(default)]
    force: bool,
}

/// Deletes the VPS of a machine, or the files of an orphan on a node.
#[utoipa::path(delete, path = "/api/vps/vm-instances/{task}", tag = "machines", params(DeleteQuery, ("task" = String, Path)),
    responses((status = 200, body = VmInstanceDeleted), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn delete_vm_instance(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Result<Json<VmInstanceDeleted>, ApiError> {
    let Query(query) = query?;
    let node = match query.hostname.filter(|name| !name.is_empty()) {
        Some(name) => Some(node::find(&app, &name).await?),
        None => None,
    };
    let removed = machines::delete(&app, &caller, &text, node, query.force).await?;
    Ok(Json(VmInstanceDeleted {
        message: removed.message,
        task_id: removed.task_id.to_string(),
        freed_bytes: removed.freed_bytes,
    }))
}
