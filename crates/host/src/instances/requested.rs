//! What people ask for and others decide on.
//!
//! ```text
//!  create by a user --no rule fits--> request --approve--> checked again, placed, made
//!                   \--a group's rule fits--> made at once      \--reject--> told why
//! ```
//!
//! A request holds nothing while it waits: what it needs is taken when it is approved, or the
//! approval says what is missing and the request goes on waiting.

use std::sync::Arc;

use kohakuriver_api::CreateVps;
use kohakuriver_model::name::NameError;
use kohakuriver_model::{
    GpuDemand, Holdings, InstanceId, InstanceSpec, Quota, Role, Status, UserId,
};
use kohakuriver_store::{
    Consent, Decision, InstanceRow, NewInstance, NewRequest, RequestRow, RequestState, StoreError,
};

use super::request::{self, RequestError, ValidatedCreate};
use super::{InstanceError, snapshots, tell, unavailable_nodes};
use crate::access::{Account, Authorized, Caller, Credential, Principal, policy};
use crate::accounts::digest;
use crate::authorized_keys_sync;
use crate::host::App;

/// The longest reason for a rejection.
const LONGEST_REASON: usize = 1000;

/// What became of a wish.
#[derive(Debug)]
pub enum Created {
    Instance(Box<InstanceRow>),
    /// An operator decides.
    Requested(Box<RequestRow>),
}

/// Checks the request. Then it is made, or waits for an operator, as its maker's role and their
/// groups' rules say.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: &CreateVps,
) -> Result<Created, InstanceError> {
    let wanted = prepare(app, caller, request).await?;
    let consent = match caller.person() {
        Some(person) if person.role < Role::Operator => {
            let decision = rule(app, person.id, &holdings(&wanted)).await?;
            let wish = serde_json::to_string(request).unwrap_or_default();
            match decision {
                Some(decision) => Consent::Rule { decision, wish },
                None => return ask(app, person, wanted, wish).await,
            }
        }
        Some(_) | None => Consent::NotNeeded,
    };
    let row = place(app, wanted, request, (caller, caller), consent).await?;
    Ok(Created::Instance(Box::new(row)))
}

async fn ask(
    app: &App,
    person: &Account,
    wanted: ValidatedCreate,
    wish: String,
) -> Result<Created, InstanceError> {
    let now_ms = app.clock.now_ms();
    let id = InstanceId::at(now_ms.unsigned_abs(), app.cluster);
    let new = NewRequest { id, owner: person.id, name: wanted.spec.name, wish };
    let row = app.store.create_request(new, now_ms).await?;
    tracing::info!(task.id = %row.id, user = person.username, "requested");
    app.changes.notify();
    Ok(Created::Requested(Box::new(row)))
}

/// Checks a wish, whether its maker may have such a thing, and what it is to be a copy of.
async fn prepare(
    app: &App,
    caller: &Caller,
    request: &CreateVps,
) -> Result<ValidatedCreate, InstanceError> {
    let source = match &request.from_vps {
        Some(text) => Some(snapshots::find_source(app, caller, text).await?),
        None => None,
    };
    let mut wanted = request::validate(request, source.as_ref().map(|(_, row)| &row.spec))?;
    caller.require(policy::to_create(&wanted.spec)).map_err(InstanceError::Denied)?;
    if let Some(name) = wanted.spec.name.as_ref().filter(|name| name.is_reserved()) {
        return Err(RequestError::Name(NameError::Reserved(name.to_string())).into());
    }
    if let Some((access, row)) = source {
        let which = request.from_snapshot.as_deref();
        wanted.spec.snapshot = Some(snapshots::choose_for_copy(app, &access, which).await?);
        wanted.target = Some(row.node_name);
    }
    Ok(wanted)
}

/// For whom it is, and who sees the refusal.
async fn place(
    app: &App,
    wanted: ValidatedCreate,
    request: &CreateVps,
    (owner, caller): (&Caller, &Caller),
    consent: Consent,
) -> Result<InstanceRow, InstanceError> {
    let ValidatedCreate { mut spec, target, demand } = wanted;
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
    tracing::info!(task.id = %row.id, node.name = %row.node_name, "created");
    tell(app, &row);
    authorized_keys_sync::catch_up(app, row.id).await;
    Ok(row)
}

/// Makes what was asked for, if there is room for it now.
///
/// # Errors
/// It is not pending any more, is not what was `shown`, or cannot be made now; then it goes on
/// waiting.
pub async fn approve(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    shown: Option<&str>,
) -> Result<InstanceRow, InstanceError> {
    let row = pending(app, access).await?;
    if shown.is_some_and(|shown| shown != approval_revision(&row)) {
        return Err(InstanceError::NotAsShown(row.id));
    }
    let request: CreateVps = serde_json::from_str(&row.wish)
        .map_err(|_| StoreError::Inconsistent { table: "requests", column: "wish" })?;
    let owner = app.store.lookup_user(row.owner).await?.filter(|user| user.is_active);
    let Some(owner) = owner else { return Err(InstanceError::OwnerGone { name: row.owner_name }) };
    // What it is a copy of must be theirs to copy still, not the operator's.
    let person = Account {
        id: owner.id,
        username: owner.username,
        role: owner.role,
        proof: Credential::Certificate,
        expires_ms: None,
    };
    let asker = Caller::new(Principal::Account(Arc::new(person)), None);
    let wanted = prepare(app, &asker, &request).await?;
    let decision = decision(caller);
    let consent = Consent::Request { id: row.id, revision: row.revision, decision };
    place(app, wanted, &request, (&asker, caller), consent).await
}

/// What an approval of exactly this request names. Another request of the same name has another:
/// its id is part of it.
pub fn approval_revision(row: &RequestRow) -> String {
    let text = format!("{} {} {} {}", row.id, row.revision, row.owner, row.wish);
    digest(&text).chars().take(16).collect()
}

/// Says no.
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

/// Takes a request back, or clears away one that was rejected.
pub async fn withdraw(app: &App, row: &RequestRow) -> Result<(), InstanceError> {
    if !app.store.delete_request(row.id).await? {
        return Err(InstanceError::Decided);
    }
    app.changes.notify();
    Ok(())
}

/// The request behind a proof, if it is one.
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

/// The rule of a group that lets somebody have this without an operator.
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

/// What a wish will hold.
fn holdings(wanted: &ValidatedCreate) -> Holdings {
    let gpus = match &wanted.demand.gpus {
        GpuDemand::None => 0,
        GpuDemand::Count(count) => u64::from(*count),
        GpuDemand::Indices(indices) => indices.len() as u64,
        GpuDemand::Same(gpus) => gpus.len() as u64,
    };
    Holdings { gpus, ..Holdings::of(&wanted.spec, true) }
}

/// Whether a change asks for more than the instance was made with: what a user cannot have
/// without somebody agreeing.
pub fn asks_for_more(old: &InstanceSpec, new: &InstanceSpec) -> bool {
    let cores = |spec: &InstanceSpec| if spec.cores == 0 { u32::MAX } else { spec.cores };
    let memory = |spec: &InstanceSpec| spec.memory_bytes.unwrap_or(u64::MAX);
    cores(new) > cores(old) || memory(new) > memory(old) || new.pids_limit > old.pids_limit
}

/// The specification of a request, for people to see; `None` where it is not valid any more.
pub fn spec_of(row: &RequestRow) -> Option<(InstanceSpec, CreateVps)> {
    let request: CreateVps = serde_json::from_str(&row.wish).ok()?;
    // A copy's image is that of its original, which may be gone.
    let plain = CreateVps { from_vps: None, from_snapshot: None, ..request.clone() };
    let ValidatedCreate { spec, .. } = request::validate(&plain, None).ok()?;
    Some((spec, request))
}
