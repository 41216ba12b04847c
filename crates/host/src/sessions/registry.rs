//! The registry of everything that depends on a right: streams into instances (terminals, SSH,
//! forwards, exec, files) and requests that wait or transfer data. Their rights are checked again
//! when accounts, shares or keys change, and they end at once when the right is revoked. The
//! beginning and end of streams are recorded in the audit log.
//!
//! ```text
//!  open session, held request -> Guard ... work ... dropped: "end" is recorded
//!       \ accounts, shares or keys change -> still allowed? no -> revoked
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kohakuriver_model::{InstanceId, Role};
use tokio_util::sync::CancellationToken;

use crate::access::{Caller, Permission, still_authorized, still_has_role};
use crate::audit::{Audit, Entry};
use crate::clock::Clock;
use crate::host::App;
use crate::limits::Permit;

/// The delay within which an expired credential, such as a token, ends its sessions.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// The right that a session or request depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// Having a session inside an instance.
    Enter(InstanceId),
    /// Having a request answered that needs a role, and this permission on the instance that its
    /// handler found.
    Ask { role: Role, permission: Option<Permission> },
}

/// The open sessions and requests.
#[derive(Debug)]
pub struct SessionRegistry {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Live>>,
    audit: Arc<Audit>,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Live {
    caller: Caller,
    right: Right,
    revoked: CancellationToken,
}

/// A registered session or request. Dropping it ends the registration.
#[derive(Debug)]
pub struct Guard {
    registry: Arc<SessionRegistry>,
    number: u64,
    caller: Caller,
    /// The kind of session and its instance, once its beginning is recorded.
    recorded: Option<(String, InstanceId)>,
    since_ms: i64,
    revoked: CancellationToken,
    permit: Option<Permit>,
}

impl SessionRegistry {
    pub fn new(audit: Arc<Audit>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(0), live: Mutex::default(), audit, clock })
    }

    /// Registers a session or request that is about to begin.
    pub fn register(self: &Arc<Self>, caller: &Caller, right: Right) -> Guard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let revoked = CancellationToken::new();
        let live = Live { caller: caller.clone(), right, revoked: revoked.clone() };
        self.lock().insert(number, live);
        Guard {
            registry: self.clone(),
            number,
            caller: caller.clone(),
            recorded: None,
            since_ms: self.clock.now_ms(),
            revoked,
            permit: None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> Vec<Live> {
        self.lock().values().cloned().collect()
    }
}

impl Guard {
    /// Waits until the right is revoked.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// Runs `work`. Returns `None` if the right is revoked before it ends.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.revoked() => None,
            done = work => Some(done),
        }
    }

    /// Holds the permit of a limit for as long as the session lasts.
    pub fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Records the beginning now, and the end when dropped. `what`: `ssh`, `exec` or the like.
    pub fn record_begin(&mut self, what: String, task_id: InstanceId) {
        self.record("session.begin", what.clone(), task_id);
        self.recorded = Some((what, task_id));
    }

    fn record(&self, action: &'static str, detail: String, task_id: InstanceId) {
        let object = format!("vps {task_id}");
        let result = if self.revoked.is_cancelled() { "cut" } else { "ok" };
        self.registry.audit.note(&self.caller, Entry { action, object, result, detail });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.number);
        if let Some((what, task_id)) = self.recorded.take() {
            let seconds = (self.registry.clock.now_ms() - self.since_ms).max(0) / 1000;
            self.record("session.end", format!("{what}, after {seconds} s"), task_id);
        }
    }
}

/// Revokes sessions whose right is gone, until the host stops.
pub async fn watch(app: Arc<App>, shutdown: CancellationToken) {
    let mut changes = app.accounts.changes();
    // A previous run of this task may have consumed a change before it panicked.
    changes.mark_changed();
    loop {
        let all = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(CHECK_EVERY) => false,
        };
        let now_ms = app.clock.now_ms();
        // Many forwards of one account to one instance share one answer.
        let mut answers = HashMap::new();
        for live in app.sessions.snapshot() {
            let Some(account) = live.caller.account() else { continue };
            let expired = account.expires_ms.is_some_and(|at_ms| at_ms <= now_ms);
            if !expired && !all {
                continue;
            }
            let credential = format!("{:?}", account.credential);
            let key = (account.id, credential, live.right, live.caller.touched());
            let stays = match answers.get(&key) {
                Some(stays) => *stays,
                None => {
                    let stays = !expired && may_stay(&app, &live).await;
                    answers.insert(key, stays);
                    stays
                }
            };
            if !stays {
                tracing::info!(user = account.username, right = ?live.right, "a session's right was revoked");
                live.revoked.cancel();
            }
        }
    }
}

async fn may_stay(app: &App, live: &Live) -> bool {
    match live.right {
        Right::Enter(task_id) => {
            still_authorized(app, &live.caller, Permission::Enter, task_id).await
        }
        Right::Ask { role, permission } => match permission.zip(live.caller.touched()) {
            Some((permission, task_id)) => {
                still_authorized(app, &live.caller, permission, task_id).await
            }
            None => still_has_role(app, &live.caller, role).await,
        },
    }
}
