//! Operations on instances, as HTTP and every other entry point call them. The model decides; this
//! module reads, applies the decision, writes, and notifies the node.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use kohakuriver_api::Task;
use kohakuriver_model::status::transition;
use kohakuriver_model::{
    Act, Admission, BackendKind, DockerState, FailureCode, Holdings, InstanceId, InstanceSpec,
    Inventory, NodeId, NodeName, Role, Status, VmState, admission,
};
use kohakuriver_store::{Change, CreateError, InstanceRow, NewEvent, Resolve, Scope, StoreError};
use tokio::time::{Instant, timeout_at};

use crate::access::{Authorized, Caller, Denied};
use crate::host::App;
use crate::present;

pub mod keys;
pub mod machines;
pub mod received;

pub mod approval;
pub mod snapshots;
pub mod validate;
pub mod visible;

use validate::RequestError;

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("there is no VPS '{0}'")]
    Unknown(String),
    #[error("'{text}' is a prefix of several ids")]
    Ambiguous { text: String, ids: Vec<InstanceId> },
    #[error("VPS {name} is {status}{}", .transition.map(|step| format!(" ({step})")).unwrap_or_default())]
    NotNow {
        name: String,
        status: Status,
        transition: Option<&'static str>,
        possible: &'static [&'static str],
        act: &'static str,
    },
    #[error("VPS {name} is a virtual machine; virtual machines cannot be paused or resumed")]
    NoPause { name: String },
    #[error("VPS {name} is being deleted")]
    Leaving { name: String },
    #[error("VPS {name} has no snapshot {which}")]
    NoSnapshot { name: String, which: String },
    #[error("VPS {name} has {} snapshots named {which}", tags.len())]
    AmbiguousSnapshot { name: String, which: String, tags: Vec<u64> },
    #[error("restoring VPS {name} would delete its data in {}, which no snapshot contains", paths.join(", "))]
    OutsideDisk { name: String, paths: Vec<String> },
    #[error("node '{node}' disconnected before it answered")]
    NodeAway { node: String },
    #[error("node '{node}' is offline")]
    NodeOffline { node: String },
    #[error("node '{node}' did not answer within {} s", .limit.as_secs())]
    NodeSlow { node: String, limit: Duration },
    #[error("VPS {name} is not a virtual machine")]
    NoMachine { name: String },
    #[error("no VPS has the id {0}; give the node that holds this virtual machine")]
    WhichNode(String),
    /// The node could not do it; the message is the node's.
    #[error("{message}")]
    Node { code: FailureCode, message: String, hint: Option<String> },
    /// The caller lacks the permission. An instance that the caller must not know of is `Unknown`.
    #[error(transparent)]
    Denied(Denied),
    #[error("this request was already decided or withdrawn")]
    Decided,
    #[error("request {0} changed since it was displayed, or was withdrawn and created again")]
    NotAsShown(InstanceId),
    #[error("the account of '{name}' is disabled")]
    OwnerGone { name: String },
    #[error("VPS {name} would exceed what was approved")]
    NeedsOperator { name: String },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How often a decision is repeated after a concurrent change.
const RETRIES: u32 = 5;

/// How long the response to a failed create waits for the removal.
const REMOVAL_LIMIT: Duration = Duration::from_secs(5);

/// Finds the instance, or request for one, that a text identifies for the caller.
pub async fn find(app: &App, caller: &Caller, text: &str) -> Result<InstanceId, InstanceError> {
    find_in(app, text, caller.scope()).await
}

/// Does the same as [`find`] for access to an instance's inside: a plain name means the caller's
/// own.
pub async fn find_to_enter(
    app: &App,
    caller: &Caller,
    text: &str,
) -> Result<InstanceId, InstanceError> {
    find_in(app, text, caller.session_scope()).await
}

async fn find_in(app: &App, text: &str, scope: Scope) -> Result<InstanceId, InstanceError> {
    match app.store.resolve_instance(text, scope).await? {
        Resolve::One(id) => Ok(id),
        Resolve::None => Err(InstanceError::Unknown(text.to_owned())),
        Resolve::Many(ids) => Err(InstanceError::Ambiguous { text: text.to_owned(), ids }),
    }
}

/// Maps a denial to the error about the instance named `text`.
pub fn denied(text: &str) -> impl FnOnce(Denied) -> InstanceError {
    move |denied| match denied {
        Denied::Hidden => InstanceError::Unknown(text.to_owned()),
        Denied::Store(error) => error.into(),
        Denied::LogIn | Denied::Role { .. } | Denied::Act { .. } => InstanceError::Denied(denied),
    }
}

/// Reads one instance.
pub async fn get(app: &App, access: &Authorized) -> Result<InstanceRow, InstanceError> {
    let id = access.task_id();
    app.store.lookup_instance(id).await?.ok_or_else(|| InstanceError::Unknown(id.to_string()))
}

/// Applies an act. One that asks for the present state changes nothing.
pub async fn act(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    act: Act,
) -> Result<InstanceRow, InstanceError> {
    act_with(app, caller, access, act, String::new(), |spec| Ok(spec.clone())).await
}

/// Does the same as [`act`] for acts that change the specification too. `edit` may be called
/// several times.
pub async fn act_with(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    act: Act,
    detail: String,
    edit: impl Fn(&InstanceSpec) -> Result<InstanceSpec, RequestError>,
) -> Result<InstanceRow, InstanceError> {
    act_as(app, caller, access, act, (act.verb(), detail), edit).await
}

/// Does the same as [`act_with`], under another name in the instance's history.
pub async fn act_as(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    act: Act,
    (kind, detail): (&'static str, String),
    edit: impl Fn(&InstanceSpec) -> Result<InstanceSpec, RequestError>,
) -> Result<InstanceRow, InstanceError> {
    let mut tries = 0;
    loop {
        let row = get(app, access).await?;
        let status = present::status_of(app, &row);
        let backend = row.spec.backend();
        let intent = match admission::admit(act, backend, &row.intent, status) {
            Admission::Already => return Ok(row),
            Admission::Change(intent) => intent,
            Admission::Refused { possible } => return Err(refused(&row, status, act, possible)),
            Admission::Unsupported => {
                let name = display_name(row.id, &row.spec);
                return Err(InstanceError::NoPause { name });
            }
        };
        let spec = edit(&row.spec)?;
        if act == Act::Update {
            // Uses the row that is compared on write: what was checked is what is used.
            check_approved(app, caller, &row, &spec).await?;
        }
        // An offline node keeps what it has, and the command waits for it. A node without an engine
        // cannot take back what it released.
        let unavailable = unavailable_nodes(app, &row.spec, &BTreeMap::new()).await?;
        let event = NewEvent { kind, actor: caller.name(), detail: detail.clone() };
        let asker = caller.user_id().filter(|_| caller.role() < Role::Operator);
        let change = Change { intent, spec, event, asker };
        match app.store.change_instance(&row, &change, &unavailable, app.clock.now_ms()).await {
            Ok(()) => {}
            Err(CreateError::Store(StoreError::Stale)) if tries < RETRIES => {
                tries += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        tracing::info!(task.id = %row.id, ?act, generation = intent.generation, "intent changed");
        let row = InstanceRow { intent, spec: change.spec, ..row };
        notify(app, &row);
        return Ok(row);
    }
}

/// Checks a change of the specification: more than was approved needs an operator or a group's
/// rule.
async fn check_approved(
    app: &App,
    caller: &Caller,
    row: &InstanceRow,
    new: &InstanceSpec,
) -> Result<(), InstanceError> {
    let Some(person) = caller.account().filter(|person| person.role < Role::Operator) else {
        return Ok(());
    };
    if approval::asks_for_more(&row.spec, new)
        && approval::rule(app, person.id, &Holdings::of(new, true)).await?.is_none()
    {
        return Err(InstanceError::NeedsOperator { name: display_name(row.id, &row.spec) });
    }
    Ok(())
}

/// Waits until the task's revision differs from `since` or the time is over, then returns the task.
/// An unknown id, also one that was deleted while waiting, is an error.
pub async fn wait_for_change(
    app: &App,
    caller: &Caller,
    text: &str,
    since: Option<u64>,
    limit: Duration,
) -> Result<InstanceId, InstanceError> {
    let deadline = Instant::now() + limit;
    let mut changes = app.changes.subscribe();
    loop {
        let id = find(app, caller, text).await?;
        let Some(since) = since else { return Ok(id) };
        let revision = match app.store.lookup_instance(id).await? {
            Some(row) => present::revision(app, &row),
            None => match app.store.lookup_request(id).await? {
                Some(row) => present::request_revision(&row),
                None => return Err(InstanceError::Unknown(text.to_owned())),
            },
        };
        if revision != since || timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(id);
        }
    }
}

/// Waits until the act is done, is blocked, or the time is over.
pub async fn wait_for_act(
    app: &App,
    access: &Authorized,
    limit: Duration,
) -> Result<Task, InstanceError> {
    let deadline = Instant::now() + limit;
    let mut changes = app.changes.subscribe();
    loop {
        let task = present::task(app, &get(app, access).await?);
        let over = task.transition.is_none() || task.error_code.is_some();
        if over || timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(task);
        }
    }
}

/// Waits until the instance has left `assigning` or is blocked, for callers that want one response.
pub async fn wait_settled(app: &App, access: &Authorized) -> Result<Task, InstanceError> {
    let mut changes = app.changes.subscribe();
    loop {
        let row = get(app, access).await?;
        let task = present::task(app, &row);
        if task.status != Status::Assigning.as_str() || task.error_code.is_some() {
            return Ok(task);
        }
        // The sender lives as long as the host.
        let _ = changes.changed().await;
    }
}

/// Deletes an instance that never ran, and waits briefly until it is gone, so that its name can be
/// used again at once. A node that is offline removes it when it reconnects.
pub async fn remove_failed(
    app: &App,
    caller: &Caller,
    access: &Authorized,
) -> Result<(), InstanceError> {
    let mut changes = app.changes.subscribe();
    act(app, caller, access, Act::Delete { force: true }).await?;
    let deadline = Instant::now() + REMOVAL_LIMIT;
    while app.store.lookup_instance(access.task_id()).await?.is_some() {
        if timeout_at(deadline, changes.changed()).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn notify(app: &App, row: &InstanceRow) {
    app.runners.order(&row.node_id, row.id);
    app.changes.notify();
}

fn refused(
    row: &InstanceRow,
    status: Status,
    act: Act,
    possible: &'static [&'static str],
) -> InstanceError {
    let name = display_name(row.id, &row.spec);
    if possible.is_empty() {
        return InstanceError::Leaving { name };
    }
    let transition = transition(&row.intent, row.observation.as_ref());
    InstanceError::NotNow { name, status, transition, possible, act: act.verb() }
}

/// Returns the name to display: the quoted name, or the id.
pub fn display_name(id: InstanceId, spec: &InstanceSpec) -> String {
    match &spec.name {
        Some(name) => format!("'{name}'"),
        None => id.to_string(),
    }
}

/// Lists the nodes that cannot take this work now with the reason, for placement.
async fn unavailable_nodes(
    app: &App,
    spec: &InstanceSpec,
    labels: &BTreeMap<String, String>,
) -> Result<HashMap<NodeId, String>, StoreError> {
    let mut unavailable = HashMap::new();
    for node in app.store.list_nodes().await? {
        let lacking = labels.iter().find(|(key, value)| node.labels.get(*key) != Some(value));
        let reason = if let Some((key, value)) = lacking {
            Some(format!("has no label {key}={value}"))
        } else if app.runners.is_online(&node.id) {
            node.inventory.as_ref().and_then(|inventory| {
                cannot_run(spec.backend(), inventory).or_else(|| inventory.forbids(spec))
            })
        } else {
            Some("is offline".to_owned())
        };
        if let Some(reason) = reason {
            unavailable.insert(node.id, reason);
        }
    }
    Ok(unavailable)
}

/// Explains why a node cannot run this backend. Its other backend may work.
fn cannot_run(backend: BackendKind, inventory: &Inventory) -> Option<String> {
    match (backend, &inventory.docker, &inventory.vm) {
        (BackendKind::Docker, DockerState::Ready { .. }, _)
        | (BackendKind::Qemu, _, VmState::Ready { .. }) => None,
        (BackendKind::Docker, DockerState::Unavailable { reason }, _) => {
            Some(format!("has no working Docker engine: {reason}"))
        }
        (BackendKind::Qemu, _, VmState::Unavailable { reason }) => {
            Some(format!("cannot run virtual machines: {reason}"))
        }
    }
}

/// Parses a node's name.
pub fn parse_node(text: &str) -> Result<NodeName, RequestError> {
    text.parse().map_err(RequestError::Name)
}
