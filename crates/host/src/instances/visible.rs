//! Tasks as a caller may see them: only those the caller may know of, with only the fields it may
//! read.

use std::collections::HashMap;

use kohakuriver_api::{Assignee, Share, Task};
use kohakuriver_model::{InstanceId, Role};
use kohakuriver_store::{Grantee, InstanceRow, Relation, RequestRow, ShareRow, SharedWith};

use super::{InstanceError, approval, get};
use crate::access::{Authorized, Caller, Permission, may};
use crate::host::App;
use crate::present;

/// Lists the caller's instances and taken shares, and for callers that run the cluster all
/// instances; newest first.
pub async fn list(app: &App, caller: &Caller) -> Result<Vec<Task>, InstanceError> {
    tasks(app, caller, caller.scope().all).await
}

/// Lists the caller's instances and taken shares, or all of them where login is disabled; newest
/// first.
pub async fn mine(app: &App, caller: &Caller) -> Result<Vec<Task>, InstanceError> {
    tasks(app, caller, caller.account().is_none()).await
}

async fn tasks(app: &App, caller: &Caller, all: bool) -> Result<Vec<Task>, InstanceError> {
    let shared = match caller.user_id() {
        Some(user) => app.store.shared_with(user).await?,
        None => HashMap::new(),
    };
    let mut shares = app.store.all_shares(None).await?;
    let mut tasks = Vec::new();
    for row in app.store.list_instances().await? {
        let shared = shared.get(&row.id);
        let relation = Relation {
            owner: row.owner.as_ref().map(|o| o.id) == caller.user_id() && row.owner.is_some(),
            level: shared.map(|shared| shared.level),
        };
        let is_wanted = all || relation.owner || shared.is_some_and(|shared| shared.taken);
        if is_wanted && may(caller, relation, Permission::See) {
            let shares = shares.remove(&row.id).unwrap_or_default();
            tasks.push((row.id, instance(app, caller, &row, (relation, shared), &shares)));
        }
    }
    for row in app.store.list_requests().await? {
        let relation = of_request(caller, &row);
        if (all || relation.owner) && may(caller, relation, Permission::See) {
            tasks.push((row.id, request(caller, &row, relation)));
        }
    }
    tasks.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    Ok(tasks.into_iter().map(|(_, task)| task).collect())
}

/// Returns one task as the caller may see it.
pub async fn one(app: &App, caller: &Caller, access: &Authorized) -> Result<Task, InstanceError> {
    let id = access.task_id();
    if let Some(row) = app.store.lookup_request(id).await? {
        return Ok(request(caller, &row, of_request(caller, &row)));
    }
    let row = get(app, access).await?;
    let relation = app.store.relation(caller.user_id(), id).await?.unwrap_or_default();
    let shared = match caller.user_id() {
        Some(user) => app.store.shared(user, Some(id)).await?.remove(&id),
        None => None,
    };
    let shares = app.store.list_shares(id).await?;
    let mut task = instance(app, caller, &row, (relation, shared.as_ref()), &shares);
    if may(caller, relation, Permission::Share) {
        let offer = app.store.offer_of(id, app.clock.now_ms()).await?;
        task.offered_to = offer.map(|offer| offer.to);
    }
    Ok(task)
}

/// Returns `NAME.OWNER`, the name alone where it has no owner, or the id where it has no name.
pub fn qualified(id: InstanceId, name: Option<&str>, owner: Option<&str>) -> String {
    match (name, owner) {
        (Some(name), Some(owner)) => format!("{name}.{owner}"),
        (Some(name), None) => name.to_owned(),
        (None, _) => id.to_string(),
    }
}

/// Returns the displayed name for callers that may list accounts, else the user name.
pub fn display_name(caller: &Caller, share: &ShareRow) -> String {
    if caller.role() >= Role::Operator { &share.display_name } else { &share.name }.clone()
}

fn of_request(caller: &Caller, row: &RequestRow) -> Relation {
    Relation { owner: Some(row.owner) == caller.user_id(), level: None }
}

fn instance(
    app: &App,
    caller: &Caller,
    row: &InstanceRow,
    (relation, shared): (Relation, Option<&SharedWith>),
    shares: &[ShareRow],
) -> Task {
    let mut task = present::task(app, row);
    let name = row.spec.name.as_ref().map(ToString::to_string);
    let owner = row.owner.as_ref().map(|owner| owner.username.as_str());
    task.reference = match shared.and_then(|shared| shared.alias.clone()) {
        Some(alias) if !relation.owner => alias,
        _ => qualified(row.id, name.as_deref(), owner.filter(|_| !relation.owner)),
    };
    task.taken = shared.filter(|_| !relation.owner).map(|shared| shared.taken);
    for share in shares {
        let kind = match share.to {
            Grantee::User(id) => {
                task.assignees.push(Assignee {
                    id: id.0,
                    username: share.name.clone(),
                    display_name: display_name(caller, share),
                });
                "user"
            }
            Grantee::Group(_) => "group",
        };
        let (name, level) = (share.name.clone(), share.level.to_string());
        let state = share.state.map(|state| state.as_str().to_owned()).unwrap_or_default();
        task.shares.push(Share { kind: kind.to_owned(), name, level, state });
    }
    limit(&mut task, caller, relation);
    task
}

fn request(caller: &Caller, row: &RequestRow, relation: Relation) -> Task {
    let mut task = present::request_task(row, approval::spec_of(row));
    let owner = Some(row.owner_name.as_str()).filter(|_| !relation.owner);
    task.reference = qualified(row.id, task.name.as_deref(), owner);
    task.approval_revision = Some(approval::approval_revision(row));
    limit(&mut task, caller, relation);
    task
}

/// Removes the fields that the caller may not read, and sets the caller's access.
fn limit(task: &mut Task, caller: &Caller, relation: Relation) {
    if !may(caller, relation, Permission::Secrets) {
        task.env_vars.clear();
    }
    task.access = match (relation.owner, relation.level) {
        (true, _) => Some("owner".to_owned()),
        (false, Some(level)) => Some(level.to_string()),
        (false, None) => caller.account().map(|person| person.role.to_string()),
    };
}
