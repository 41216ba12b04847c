//! Approval: requests for instances that an operator decides on.
//!
//! ```text
//!  create by a user --no rule fits--> request --approve--> checked again, placed, created
//!                   \--a group's rule fits--> created at once   \--reject--> reason recorded
//! ```
//!
//! A request holds nothing while it waits: resources are allocated when it is approved, or the
//! approval reports what is missing and the request stays pending.

use std::sync::Arc;

use kohakuriver_api::CreateVps;
use kohakuriver_model::name::NameError;
use kohakuriver_model::{
    GpuDemand, Holdings, InstanceId, InstanceSpec, Quota, Role, Status, UserId,
};
use kohakuriver_store::{
    Consent, Decision, InstanceRow, NewInstance, NewRequest, RequestRow, RequestState, StoreError,
};

use super::validate::{self, RequestError, ValidatedCreate};
use super::{InstanceError, notify, snapshots, unavailable_nodes};
use crate::access::{Account, Authorized, Caller, Credential, Principal, policy};
use crate::accounts::digest;
use crate::authorized_keys_sync;
use crate::host::App;

/// The longest reason for a rejection.
const LONGEST_REASON: usize = 1000;

/// The outcome of a create.
#[derive(Debug)]
pub enum Created {
    Instance(Box<InstanceRow>),
    /// An operator decides on it.
    Requested(Box<RequestRow>),
}

/// Validates a create, then creates the instance or records a request for an operator, depending on
/// the caller's role and the rules of the caller's groups.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: &CreateVps,
) -> Result<Created, InstanceError> {
    let validated = prepare(app, caller, request).await?;
    let consent = match caller.account() {
        Some(person) if person.role < Role::Operator => {
            let decision = rule(app, person.id, &holdings(&validated)).await?;
            let request_json = serde_json::to_string(request).unwrap_or_default();
            match decision {
                Some(decision) => Consent::Rule { decision, request_json },
                None => return ask(app, person, validated, request_json).await,
            }
        }
        Some(_) | None => Consent::NotNeeded,
    };
    let row = place(app, validated, request, (caller, caller), consent).await?;
    Ok(Created::Instance(Box::new(row)))
}

async fn ask(
    app: &App,
    person: &Account,
    validated: ValidatedCreate,
    request_json: String,
) -> Result<Created, InstanceError> {
    let now_ms = app.clock.now_ms();
    let id = InstanceId::at(now_ms.unsigned_abs(), app.cluster);
    let new = NewRequest { id, owner: person.id, name: validated.spec.name, request_json };
    let row = app.store.create_request(new, now_ms).await?;
    tracing::info!(task.id = %row.id, user.id = %person.id, "request recorded");
    app.changes.notify();
    Ok(Created::Requested(Box::new(row)))
}

/// Validates a create, the caller's permission for it, and the source of a copy.
async fn prepare(
    app: &App,
    caller: &Caller,
    request: &CreateVps,
) -> Result<ValidatedCreate, InstanceError> {
    let source = match &request.from_vps {
        Some(text) => Some(snapshots::find_source(app, caller, text).await?),
        None => None,
    };
    let mut validated = validate::create(request, source.as_ref().map(|(_, row)| &row.spec))?;
    caller.require(policy::to_create(&validated.spec)).map_err(InstanceError::Denied)?;
    if let Some(name) = validated.spec.name.as_ref().filter(|name| name.is_reserved()) {
        return Err(RequestError::Name(NameError::Reserved(name.to_string())).into());
    }
    if let Some((access, row)) = source {
        let which = request.from_snapshot.as_deref();
        validated.spec.snapshot = Some(snapshots::choose_for_copy(app, &access, which).await?);
        validated.target = Some(row.node_name);
    }
    Ok(validated)
}

/// Places and creates the instance. The pair is the owner and the caller that sees a refusal.
async fn place(
    app: &App,
    validated: ValidatedCreate,
    request: &CreateVps,
    (owner, caller): (&Caller, &Caller),
    consent: Consent,
) -> Result<InstanceRow, InstanceError> {
    let ValidatedCreate { mut spec, target, demand } = validated;
    let now_ms = app.clock.now_ms();
    let id = InstanceId::at(now_ms.unsigned_abs(), app.cluster);
    if let Some(access) = &mut spec.ssh {
        authorized_keys_sync::prepare(app, access, id, owner.user_id()).await?;
    }
    let unavailable = unavailable_nodes(app, &spec, &request.node_labels).await?;
    let names_others = caller.role() >= Role::Operator;
    let (actor, owner) = (owner.name(), owner.user_id());
    let new = NewInstance { id, spec, target, demand, actor, owner, consent, names_others };
    let row = app.store.create_instance(new, &unavailable, now_ms).await?;
    tracing::info!(task.id = %row.id, node.name = %row.node_name, "instance created");
    notify(app, &row);
    authorized_keys_sync::catch_up(app, row.id).await;
    Ok(row)
}

/// Approves a request and creates its instance, if there is capacity for it now.
///
/// # Errors
/// The request is not pending, its revision is not `expected`, or it cannot be created now; then it
/// stays pending.
pub async fn approve(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    expected: Option<&str>,
) -> Result<InstanceRow, InstanceError> {
    let row = pending(app, access).await?;
    if expected.is_some_and(|expected| expected != approval_revision(&row)) {
        return Err(InstanceError::NotAsShown(row.id));
    }
    let request: CreateVps = serde_json::from_str(&row.request_json)
        .map_err(|_| StoreError::Inconsistent { table: "requests", column: "wish" })?;
    let owner = app.store.lookup_user(row.owner).await?.filter(|user| user.is_active);
    let Some(owner) = owner else { return Err(InstanceError::OwnerGone { name: row.owner_name }) };
    // The owner of the request, not the operator, must still have the permission to copy the
    // source.
    let person = Account {
        id: owner.id,
        username: owner.username,
        role: owner.role,
        credential: Credential::Certificate,
        expires_ms: None,
    };
    let asker = Caller::new(Principal::Account(Arc::new(person)), None);
    let validated = prepare(app, &asker, &request).await?;
    let decision = decision(caller);
    let consent = Consent::Request { id: row.id, revision: row.revision, decision };
    place(app, validated, &request, (&asker, caller), consent).await
}

/// Returns the revision that an approval names. It covers the id, so another request of the same
/// name has another revision.
pub fn approval_revision(row: &RequestRow) -> String {
    let text = format!("{} {} {} {}", row.id, row.revision, row.owner, row.request_json);
    digest(&text).chars().take(16).collect()
}

/// Rejects a pending request.
pub async fn reject(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    reason: Option<String>,
) -> Result<RequestRow, InstanceError> {
    let row = pending(app, access).await?;
    let reason = reason.map(|text| text.chars().take(LONGEST_REASON).collect::<String>());
    let now_ms = app.clock.now_ms();
    if !app.store.reject_request(row.id, &decision(caller), reason.as_deref(), now_ms).await? {
        return Err(InstanceError::Decided);
    }
    app.changes.notify();
    let row = app.store.lookup_request(row.id).await?;
    row.ok_or(InstanceError::Decided)
}

/// Withdraws a pending request, or removes a rejected one.
pub async fn withdraw(app: &App, row: &RequestRow) -> Result<(), InstanceError> {
    if !app.store.delete_request(row.id).await? {
        return Err(InstanceError::Decided);
    }
    app.changes.notify();
    Ok(())
}

/// Returns the request behind an authorization, if it is one.
pub async fn lookup(app: &App, access: &Authorized) -> Result<Option<RequestRow>, StoreError> {
    app.store.lookup_request(access.task_id()).await
}

pub fn status(row: &RequestRow) -> Status {
    match row.state {
        RequestState::Pending | RequestState::Approved => Status::PendingApproval,
        RequestState::Rejected => Status::Rejected,
    }
}

async fn pending(app: &App, access: &Authorized) -> Result<RequestRow, InstanceError> {
    let row = lookup(app, access).await?;
    row.filter(|row| row.state == RequestState::Pending).ok_or(InstanceError::Decided)
}

fn decision(caller: &Caller) -> Decision {
    Decision { by: caller.name(), by_id: caller.user_id().map(|id| id.0) }
}

/// Returns the group rule that allows this without an operator.
pub async fn rule(
    app: &App,
    user: UserId,
    asked: &Holdings,
) -> Result<Option<Decision>, StoreError> {
    let groups = app.store.list_groups().await?;
    let fits = |rule: &Quota| rule.check("the rule", &Holdings::default(), asked).is_ok();
    Ok(groups
        .into_iter()
        .filter(|group| group.members.iter().any(|(id, _)| *id == user))
        .find(|group| group.auto_approve.as_ref().is_some_and(fits))
        .map(|group| Decision { by: format!("rule of group {}", group.name), by_id: None }))
}

/// Returns what a created instance will hold.
fn holdings(validated: &ValidatedCreate) -> Holdings {
    let gpus = match &validated.demand.gpus {
        GpuDemand::None => 0,
        GpuDemand::Count(count) => u64::from(*count),
        GpuDemand::Indices(indices) => indices.len() as u64,
        GpuDemand::Same(gpus) => gpus.len() as u64,
    };
    Holdings { gpus, ..Holdings::of(&validated.spec, true) }
}

/// Checks whether a change asks for more than was approved, which needs an operator or a rule.
pub fn asks_for_more(old: &InstanceSpec, new: &InstanceSpec) -> bool {
    let cores = |spec: &InstanceSpec| if spec.cores == 0 { u32::MAX } else { spec.cores };
    let memory = |spec: &InstanceSpec| spec.memory_bytes.unwrap_or(u64::MAX);
    cores(new) > cores(old) || memory(new) > memory(old) || new.pids_limit > old.pids_limit
}

/// Returns the requested specification for display; `None` where it is no longer valid.
pub fn spec_of(row: &RequestRow) -> Option<(InstanceSpec, CreateVps)> {
    let request: CreateVps = serde_json::from_str(&row.request_json).ok()?;
    // A copy has its original's image, and the original may be gone.
    let plain = CreateVps { from_vps: None, from_snapshot: None, ..request.clone() };
    let ValidatedCreate { spec, .. } = validate::create(&plain, None).ok()?;
    Some((spec, request))
}
