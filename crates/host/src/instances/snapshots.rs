//! Snapshots: the node's engine holds them, so every query goes to the node.

use kohakuriver_model::bounds::MAX_SNAPSHOTS;
use kohakuriver_model::{FailureCode, InstanceSpec, SnapshotRef};
use kohakuriver_runner_link::protocol::{InstanceCommand, InstanceReply, Snapshot};
use kohakuriver_store::{InstanceRow, NewEvent};

use super::{InstanceError, act_with, denied, display_name, find_to_enter, get};
use crate::access::{Authorized, Caller, Permission, authorize};
use crate::host::App;
use kohakuriver_model::Act;

/// Lists an instance's snapshots, newest first.
pub async fn list(app: &App, access: &Authorized) -> Result<Vec<Snapshot>, InstanceError> {
    let row = get(app, access).await?;
    Ok(inspect(app, &row).await?.0)
}

/// Returns the snapshots, and the paths of the instance that no snapshot contains.
async fn inspect(
    app: &App,
    row: &InstanceRow,
) -> Result<(Vec<Snapshot>, Vec<String>), InstanceError> {
    let (mut all, mut paths) = (Vec::<Snapshot>::new(), Vec::new());
    // Bounded: a node's pages may never end.
    while all.len() < 2 * MAX_SNAPSHOTS {
        let before = all.last().map(|snapshot| snapshot.tag);
        let InstanceReply::Snapshots { snapshots, more, outside } =
            ask(app, row, InstanceCommand::ListSnapshots { before }).await?
        else {
            return Err(invalid_reply(row));
        };
        paths = outside;
        let known = all.len();
        // A runner without paging sends the whole list again.
        all.extend(snapshots.into_iter().filter(|one| before.is_none_or(|tag| one.tag < tag)));
        if !more || all.len() == known {
            break;
        }
    }
    Ok((all, paths))
}

/// Creates a snapshot; the time grows with the disk's size.
pub async fn create(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    name: Option<String>,
    message: Option<String>,
) -> Result<Snapshot, InstanceError> {
    let row = get(app, access).await?;
    let command = InstanceCommand::CreateSnapshot { name, message };
    match ask(app, &row, command).await? {
        InstanceReply::Created { snapshot } => {
            record(app, caller, &row, "snapshot", snapshot.tag.to_string()).await?;
            Ok(snapshot)
        }
        InstanceReply::Snapshots { .. } | InstanceReply::Deleted | InstanceReply::Failed { .. } => {
            Err(invalid_reply(&row))
        }
    }
}

/// Deletes a snapshot. `which` is a tag, a name or `latest`.
pub async fn delete(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    which: &str,
) -> Result<(), InstanceError> {
    let row = get(app, access).await?;
    let tag = choose(&row, &list(app, access).await?, Some(which))?;
    match ask(app, &row, InstanceCommand::DeleteSnapshot { tag }).await? {
        InstanceReply::Deleted => {
            record(app, caller, &row, "snapshot_deleted", tag.to_string()).await
        }
        InstanceReply::Snapshots { .. }
        | InstanceReply::Created { .. }
        | InstanceReply::Failed { .. } => Err(invalid_reply(&row)),
    }
}

/// Deletes all snapshots without dependents. Returns their number.
pub async fn delete_all(
    app: &App,
    caller: &Caller,
    access: &Authorized,
) -> Result<u64, InstanceError> {
    let mut deleted = 0;
    for snapshot in list(app, access).await? {
        if !snapshot.in_use {
            delete(app, caller, access, &snapshot.tag.to_string()).await?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Starts the instance again on the disk of one of its snapshots.
pub async fn restore(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    which: Option<&str>,
) -> Result<InstanceRow, InstanceError> {
    let row = get(app, access).await?;
    // The node is queried before anything is deleted.
    let (snapshots, outside) = inspect(app, &row).await?;
    let tag = choose(&row, &snapshots, which)?;
    if !outside.is_empty() {
        let name = display_name(row.id, &row.spec);
        return Err(InstanceError::OutsideDisk { name, paths: outside });
    }
    let snapshot = Some(SnapshotRef { task_id: row.id, tag });
    let edit = |spec: &InstanceSpec| Ok(InstanceSpec { snapshot, ..spec.clone() });
    act_with(app, caller, access, Act::Restore, format!("snapshot {tag}"), edit).await
}

/// Finds the instance to copy.
pub async fn find_source(
    app: &App,
    caller: &Caller,
    text: &str,
) -> Result<(Authorized, InstanceRow), InstanceError> {
    let id = find_to_enter(app, caller, text).await?;
    // A copy reveals all of the original's content.
    let access = authorize(app, caller, Permission::Secrets, id).await.map_err(denied(text))?;
    let row = get(app, &access).await?;
    Ok((access, row))
}

/// Resolves the snapshot to copy.
pub async fn choose_for_copy(
    app: &App,
    access: &Authorized,
    which: Option<&str>,
) -> Result<SnapshotRef, InstanceError> {
    let row = get(app, access).await?;
    let tag = choose(&row, &list(app, access).await?, which)?;
    Ok(SnapshotRef { task_id: row.id, tag })
}

fn choose(
    row: &InstanceRow,
    snapshots: &[Snapshot],
    which: Option<&str>,
) -> Result<u64, InstanceError> {
    let which = which.unwrap_or("latest");
    let by_tag = |text: &str| snapshots.iter().find(|snapshot| snapshot.tag.to_string() == text);
    let chosen = if which == "latest" {
        snapshots.first()
    } else if let Some(tagged) = by_tag(which) {
        Some(tagged)
    } else {
        let is_named = |snapshot: &&Snapshot| snapshot.name.as_deref() == Some(which);
        let named: Vec<&Snapshot> = snapshots.iter().filter(is_named).collect();
        if named.len() > 1 {
            // Older versions let names repeat.
            return Err(InstanceError::AmbiguousSnapshot {
                name: display_name(row.id, &row.spec),
                which: which.to_owned(),
                tags: named.iter().map(|snapshot| snapshot.tag).collect(),
            });
        }
        named.first().copied()
    };
    chosen.map(|snapshot| snapshot.tag).ok_or_else(|| InstanceError::NoSnapshot {
        name: display_name(row.id, &row.spec),
        which: which.to_owned(),
    })
}

async fn ask(
    app: &App,
    row: &InstanceRow,
    command: InstanceCommand,
) -> Result<InstanceReply, InstanceError> {
    match app.runners.ask(&row.node_id, row.id, command).await {
        Some(InstanceReply::Failed { code, message, hint }) => {
            Err(InstanceError::Node { code, message, hint })
        }
        Some(answer) => Ok(answer),
        None => Err(InstanceError::NodeAway { node: row.node_name.to_string() }),
    }
}

fn invalid_reply(row: &InstanceRow) -> InstanceError {
    InstanceError::Node {
        code: FailureCode::Internal,
        message: format!("node '{}' sent an invalid response", row.node_name),
        hint: None,
    }
}

async fn record(
    app: &App,
    caller: &Caller,
    row: &InstanceRow,
    kind: &'static str,
    detail: String,
) -> Result<(), InstanceError> {
    let event = NewEvent { kind, actor: caller.name(), detail };
    app.store.record_event(row.id, &event, app.clock.now_ms()).await?;
    app.changes.notify();
    Ok(())
}
