//! Tasks as one person may see them: only those they may know of, and of each only what they
//! may read.

use std::collections::HashMap;

use kohakuriver_api::{Assignee, Share, Task};
use kohakuriver_model::TaskId;
use kohakuriver_store::{Grantee, InstanceRow, Relation, RequestRow, ShareRow};

use super::{InstanceError, get, requested};
use crate::access::{Authorized, Caller, Wish, may};
use crate::host::App;
use crate::view;

/// All that the caller may know of, newest first.
pub async fn list(app: &App, caller: &Caller) -> Result<Vec<Task>, InstanceError> {
    tasks(app, caller, |_| true).await
}

/// What is theirs or shared with them; all of it while nobody logs in. Newest first.
pub async fn mine(app: &App, caller: &Caller) -> Result<Vec<Task>, InstanceError> {
    let logs_in = caller.person().is_some();
    tasks(app, caller, |relation| !logs_in || relation.owner || relation.level.is_some()).await
}

async fn tasks(
    app: &App,
    caller: &Caller,
    is_wanted: impl Fn(Relation) -> bool,
) -> Result<Vec<Task>, InstanceError> {
    let shared = match caller.user_id() {
        Some(user) => app.store.shared_with(user).await?,
        None => HashMap::new(),
    };
    let mut shares = app.store.all_shares(None).await?;
    let mut tasks = Vec::new();
    for row in app.store.list_instances().await? {
        let relation = Relation {
            owner: row.owner.as_ref().map(|o| o.id) == caller.user_id() && row.owner.is_some(),
            level: shared.get(&row.id).copied(),
        };
        if is_wanted(relation) && may(caller, relation, Wish::See) {
            let shares = shares.remove(&row.id).unwrap_or_default();
            tasks.push((row.id, instance(app, caller, &row, relation, &shares)));
        }
    }
    for row in app.store.list_requests().await? {
        let relation = of_request(caller, &row);
        if is_wanted(relation) && may(caller, relation, Wish::See) {
            tasks.push((row.id, request(caller, &row, relation)));
        }
    }
    tasks.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    Ok(tasks.into_iter().map(|(_, task)| task).collect())
}

/// One of them.
pub async fn one(app: &App, caller: &Caller, access: &Authorized) -> Result<Task, InstanceError> {
    let id = access.task_id();
    if let Some(row) = app.store.lookup_request(id).await? {
        return Ok(request(caller, &row, of_request(caller, &row)));
    }
    let row = get(app, access).await?;
    let relation = relation(app, caller, id).await?;
    Ok(instance(app, caller, &row, relation, &app.store.list_shares(id).await?))
}

async fn relation(app: &App, caller: &Caller, id: TaskId) -> Result<Relation, InstanceError> {
    Ok(app.store.relation(caller.user_id(), id).await?.unwrap_or_default())
}

fn of_request(caller: &Caller, row: &RequestRow) -> Relation {
    Relation { owner: Some(row.owner) == caller.user_id(), level: None }
}

fn instance(
    app: &App,
    caller: &Caller,
    row: &InstanceRow,
    relation: Relation,
    shares: &[ShareRow],
) -> Task {
    let mut task = view::task(app, row);
    for share in shares {
        let kind = match share.to {
            Grantee::User(id) => {
                task.assignees.push(Assignee {
                    id: id.0,
                    username: share.name.clone(),
                    display_name: share.display_name.clone(),
                });
                "user"
            }
            Grantee::Group(_) => "group",
        };
        let (name, level) = (share.name.clone(), share.level.to_string());
        task.shares.push(Share { kind: kind.to_owned(), name, level });
    }
    limit(&mut task, caller, relation);
    task
}

fn request(caller: &Caller, row: &RequestRow, relation: Relation) -> Task {
    let mut task = view::requested(row, requested::spec_of(row));
    limit(&mut task, caller, relation);
    task
}

/// Takes out what they may not read, and says what they are to it.
fn limit(task: &mut Task, caller: &Caller, relation: Relation) {
    if !may(caller, relation, Wish::Secrets) {
        task.env_vars.clear();
    }
    task.access = match (relation.owner, relation.level) {
        (true, _) => Some("owner".to_owned()),
        (false, Some(level)) => Some(level.to_string()),
        (false, None) => caller.person().map(|person| person.role.to_string()),
    };
}
