//! Keeps the SSH access of instances current: the certificates they trust, the accounts that may
//! enter (even with a valid certificate), and the keys that these have registered, so that stock
//! `ssh -J alice@host:8002 root@vps` works.
//!
//! ```text
//!  a key, share, group or account changes -> debounce -> refresh: which instances have
//!     other data? -> each gets its next generation, as if its keys had been edited
//! ```
//!
//! This ends no session that came through the host: [`crate::sessions::registry`] does, at once. It
//! is about the next login, and about logins to a VPS's port 22 past the host: the agent ends those
//! when it receives the update.

mod choice;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::bounds::{MAX_PEOPLE_KEYS, MAX_PEOPLE_KEYS_BYTES};
use kohakuriver_model::{Act, Desired, InstanceId, InstanceSpec, People, SshAccess, UserId};
use kohakuriver_store::{InstanceRow, StoreError};
use tokio_util::sync::CancellationToken;

use crate::access::{Caller, Permission, authorize, policy};
use crate::accounts;
use crate::host::App;
use crate::instances::{self, InstanceError};

/// Debounce: changes within this window are sent as one update.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The delay until failed updates are sent again.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// How long a caller waits for the node to apply an update.
const APPLY_WITHIN: Duration = Duration::from_secs(5);

/// Fills in the SSH access of an instance that is about to be created.
pub async fn prepare(
    app: &App,
    access: &mut SshAccess,
    id: InstanceId,
    owner: Option<UserId>,
) -> Result<(), StoreError> {
    access.trusted_ca = Some(app.ssh_ca.trusted_by(id));
    (access.people_keys, access.people) = (Vec::new(), None);
    if !app.config.auth.enabled {
        return Ok(());
    }
    let people = app.store.first_people(owner).await?;
    access.people = Some(choice::people(people.into_iter().collect()));
    if let Some(owner) = owner {
        let known = choice::Keys::new(app.store.keys_of_accounts().await?);
        access.people_keys = known.of(&[owner].into()).lines;
    }
    Ok(())
}

/// Updates one instance that was created while accounts may have changed.
pub async fn catch_up(app: &App, id: InstanceId) {
    if let Err(error) = refresh(app, Some(id)).await {
        tracing::warn!(task.id = %id, %error, "comparing registered keys failed");
    }
}

/// Updates all instances whenever accounts change, for as long as a host with authentication runs.
pub async fn keep_fresh(app: Arc<App>, shutdown: CancellationToken) {
    let mut changes = app.accounts.changes();
    loop {
        let result = refresh(&app, None).await;
        if let Err(error) = &result {
            tracing::warn!(%error, "updating registered keys failed; trying again");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            // The sender lives as long as the host.
            _ = changes.changed() => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(RETRY_AFTER), if result.is_err() => {}
        }
        // Changes during the pause are part of the next read.
        changes.mark_unchanged();
    }
}

/// Compares the access that instances have with the current one, and updates those that differ.
async fn refresh(app: &App, only: Option<InstanceId>) -> Result<(), InstanceError> {
    if !app.config.auth.enabled {
        return Ok(());
    }
    let rows = match only {
        Some(id) => app.store.lookup_instance(id).await?.into_iter().collect(),
        None => app.store.list_instances().await?,
    };
    let mut permitted = permitted(app, only).await?;
    let known = choice::Keys::new(app.store.keys_of_accounts().await?);
    let mut failed = None;
    for row in rows {
        let people = permitted.remove(&row.id).unwrap_or_default();
        let Some(access) = &row.spec.ssh else { continue };
        let choice::Chosen { lines: keys, left_out } = known.of(&people.0);
        let people = Some(choice::people(people.0));
        let is_current = access.people_keys == keys && access.people == people;
        if is_current || row.intent.desired == Desired::Deleted {
            continue;
        }
        let count = keys.len();
        let set = |access: &mut SshAccess| {
            access.people_keys.clone_from(&keys);
            access.people.clone_from(&people);
            access.trusted_ca = Some(app.ssh_ca.trusted_by(row.id));
        };
        let mut detail = format!("{count} registered {}", if count == 1 { "key" } else { "keys" });
        if left_out > 0 {
            tracing::warn!(task.id = %row.id, keys = count, left_out, "registered keys were left out");
            detail.push_str(&format!(
                "; {left_out} left out: at most {MAX_PEOPLE_KEYS} of {MAX_PEOPLE_KEYS_BYTES} bytes"
            ));
        }
        match change(app, row.id, detail, set).await {
            Ok(_) | Err(InstanceError::NotNow { .. } | InstanceError::Leaving { .. }) => {}
            // An instance that cannot be updated must not delay the others.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Returns the accounts that may enter each instance.
async fn permitted(
    app: &App,
    only: Option<InstanceId>,
) -> Result<HashMap<InstanceId, People>, StoreError> {
    let mut permitted: HashMap<InstanceId, People> = HashMap::new();
    let since_ms = app.clock.now_ms() - accounts::millis(app.config.auth.provider_life);
    for person in app.store.people_of(only, since_ms).await? {
        let verdict = policy::on_instance(person.role, person.relation, Permission::Enter);
        if verdict == policy::Verdict::Allow {
            permitted.entry(person.instance).or_default().0.insert(person.user);
        }
    }
    Ok(permitted)
}

/// Makes an instance from before certificates trust this host's, and waits until its node has
/// applied that. Returns whether it has.
pub async fn trust(app: &App, row: &InstanceRow) -> Result<bool, InstanceError> {
    let trusted = app.ssh_ca.trusted_by(row.id);
    if row.spec.ssh.as_ref().is_none_or(|ssh| ssh.trusted_ca.as_ref() == Some(&trusted)) {
        return Ok(true);
    }
    let detail = "trusts the host's SSH certificates".to_owned();
    let set = |access: &mut SshAccess| access.trusted_ca = Some(trusted.clone());
    let row = change(app, row.id, detail, set).await?;
    if !app.runners.is_online(&row.node_id) {
        return Ok(false);
    }
    let access = host_access(app, row.id).await?;
    let task = instances::wait_for_act(app, &access, APPLY_WITHIN).await?;
    Ok(task.transition.is_none())
}

async fn change(
    app: &App,
    id: InstanceId,
    detail: String,
    set: impl Fn(&mut SshAccess),
) -> Result<InstanceRow, InstanceError> {
    let access = host_access(app, id).await?;
    let edit = |spec: &InstanceSpec| {
        let mut spec = spec.clone();
        if let Some(access) = &mut spec.ssh {
            set(access);
        }
        Ok(spec)
    };
    instances::act_as(app, &Caller::host(), &access, Act::Update, ("keys", detail), edit).await
}

async fn host_access(
    app: &App,
    id: InstanceId,
) -> Result<crate::access::Authorized, InstanceError> {
    let refused = instances::denied("");
    authorize(app, &Caller::host(), Permission::Change, id).await.map_err(refused)
}
