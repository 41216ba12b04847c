//! Virtual machines on their nodes: base images, and machine folders, including those of no VPS.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use kohakuriver_model::{Act, BackendKind, FailureCode, InstanceId};
use kohakuriver_runner_link::protocol::{Machine, NodeQuery, NodeReply, VmImage};
use kohakuriver_store::{InstanceRow, NodeRow};
use tokio::time::timeout;

use super::{InstanceError, act, denied, display_name, find};
use crate::access::{Caller, Permission, authorize};
use crate::host::App;

/// A list reads one folder. A node whose storage hangs must not delay the others.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Removing a file of many gigabytes can take a while.
const DELETE_LIMIT: Duration = Duration::from_secs(120);

/// A node's machines, or the error of the query.
#[derive(Debug)]
pub struct NodeMachines {
    pub node: NodeRow,
    pub machines: Result<Vec<MachineFiles>, InstanceError>,
    pub dir: Option<String>,
}

/// A machine's files, with the VPS they belong to.
#[derive(Debug)]
pub struct MachineFiles {
    pub machine: Machine,
    pub row: Option<InstanceRow>,
}

/// The outcome of removing a machine's files.
#[derive(Debug)]
pub struct Removed {
    pub task_id: InstanceId,
    pub freed_bytes: u64,
    pub message: String,
}

/// Returns the folder of a node's base images and its content.
pub async fn images(app: &App, node: &NodeRow) -> Result<(String, Vec<VmImage>), InstanceError> {
    match ask(app, node, NodeQuery::ListVmImages, LIST_LIMIT).await? {
        NodeReply::VmImages { dir, images } => Ok((dir, images)),
        NodeReply::Machines { .. } | NodeReply::Deleted { .. } | NodeReply::Failed { .. } => {
            Err(invalid_reply(node))
        }
    }
}

/// Lists the machines of all nodes.
pub async fn list(app: &App) -> Result<Vec<NodeMachines>, InstanceError> {
    let nodes = app.store.list_nodes().await?;
    let answers = join_all(nodes.iter().map(|node| machines(app, node))).await;
    // Read after the replies: a VPS created meanwhile is not taken for an orphan.
    let rows = app.store.list_instances().await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row)).collect();
    let mut with_row = |node: &NodeRow, machine: Machine| {
        let its = rows.get(&machine.task_id).is_some_and(|row| row.node_id == node.id);
        let row = if its { rows.remove(&machine.task_id) } else { None };
        MachineFiles { machine, row }
    };
    let all = nodes.into_iter().zip(answers).map(|(node, answer)| {
        let (dir, machines) = match answer {
            Ok((dir, machines)) => {
                let machines = machines.into_iter().map(|machine| with_row(&node, machine));
                (Some(dir), Ok(machines.collect()))
            }
            Err(error) => (None, Err(error)),
        };
        NodeMachines { node, machines, dir }
    });
    Ok(all.collect())
}

/// Removes a machine's files. A machine of a VPS is deleted with its VPS; an orphan is removed by
/// its node.
pub async fn delete(
    app: &App,
    caller: &Caller,
    text: &str,
    node: Option<NodeRow>,
    force: bool,
) -> Result<Removed, InstanceError> {
    let row = match find(app, caller, text).await {
        Ok(id) => app.store.lookup_instance(id).await?,
        Err(InstanceError::Unknown(_)) => None,
        Err(error) => return Err(error),
    };
    let its = |row: &InstanceRow| node.as_ref().is_none_or(|node| node.id == row.node_id);
    if let Some(row) = row.filter(|row| its(row)) {
        return delete_vps(app, caller, row, force).await;
    }
    let id: InstanceId = text.parse().map_err(|_| InstanceError::Unknown(text.to_owned()))?;
    let node = node.ok_or_else(|| InstanceError::WhichNode(text.to_owned()))?;
    // Belongs to no account, so the route requires an admin.
    let query = NodeQuery::DeleteMachine { task_id: id, force };
    match ask(app, &node, query, DELETE_LIMIT).await? {
        NodeReply::Deleted { freed_bytes } => {
            tracing::info!(task.id = %id, node.name = %node.name, "orphaned machine removed");
            let message = format!("the files of machine {id} on node '{}' are removed", node.name);
            Ok(Removed { task_id: id, freed_bytes, message })
        }
        NodeReply::Machines { .. } | NodeReply::VmImages { .. } | NodeReply::Failed { .. } => {
            Err(invalid_reply(&node))
        }
    }
}

async fn delete_vps(
    app: &App,
    caller: &Caller,
    row: InstanceRow,
    force: bool,
) -> Result<Removed, InstanceError> {
    let name = display_name(row.id, &row.spec);
    if row.spec.backend() != BackendKind::Qemu {
        return Err(InstanceError::NoMachine { name });
    }
    let nodes = app.store.list_nodes().await?;
    let freed_bytes = match nodes.iter().find(|node| node.id == row.node_id) {
        // A node that cannot check it now still receives the delete later.
        Some(node) => machines(app, node).await.map_or(0, |(_, machines)| {
            let its = machines.iter().find(|machine| machine.task_id == row.id);
            its.map_or(0, |machine| machine.disk_bytes)
        }),
        None => 0,
    };
    let access = authorize(app, caller, Permission::Delete, row.id).await.map_err(denied(&name))?;
    act(app, caller, &access, Act::Delete { force }).await?;
    let message = format!("VPS {name} is being deleted");
    Ok(Removed { task_id: row.id, freed_bytes, message })
}

async fn machines(app: &App, node: &NodeRow) -> Result<(String, Vec<Machine>), InstanceError> {
    match ask(app, node, NodeQuery::ListMachines, LIST_LIMIT).await? {
        NodeReply::Machines { dir, machines } => Ok((dir, machines)),
        NodeReply::VmImages { .. } | NodeReply::Deleted { .. } | NodeReply::Failed { .. } => {
            Err(invalid_reply(node))
        }
    }
}

async fn ask(
    app: &App,
    node: &NodeRow,
    query: NodeQuery,
    limit: Duration,
) -> Result<NodeReply, InstanceError> {
    let name = node.name.to_string();
    if !app.runners.is_online(&node.id) {
        return Err(InstanceError::NodeOffline { node: name });
    }
    match timeout(limit, app.runners.ask_node(&node.id, query)).await {
        Ok(Some(NodeReply::Failed { code, message, hint })) => {
            Err(InstanceError::Node { code, message, hint })
        }
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(InstanceError::NodeAway { node: name }),
        Err(_) => Err(InstanceError::NodeSlow { node: name, limit }),
    }
}

fn invalid_reply(node: &NodeRow) -> InstanceError {
    InstanceError::Node {
        code: FailureCode::Internal,
        message: format!("node '{}' sent an invalid response", node.name),
        hint: None,
    }
}
