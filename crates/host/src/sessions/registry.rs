//! The registry of everything that goes on by a right: streams into instances (terminals, SSH,
//! forwards, exec, files) and requests that wait or move bytes. Each is asked for its right again
//! when accounts, shares or keys change, and ends at once when the right is gone. Streams have a
//! beginning and an end in the audit log.
//!
//! ```text
//!  enter, held request -> Guard ... work ... dropped: "end" is written down
//!                           \ accounts, shares or keys change -> still allowed? no -> cut
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

/// What expires by itself, such as a token, is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What lets something go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// To be inside an instance.
    Enter(InstanceId),
    /// To have a request answered that asks for a role, and for this of the instance that its
    /// handler found.
    Ask { role: Role, wish: Option<Permission> },
}

/// All that goes on.
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
    cut: CancellationToken,
}

/// One thing that goes on. Dropping it is the end.
#[derive(Debug)]
pub struct Guard {
    registry: Arc<SessionRegistry>,
    number: u64,
    caller: Caller,
    /// What it is, and in which instance, once it is written down that it began.
    announced: Option<(String, InstanceId)>,
    since_ms: i64,
    cut: CancellationToken,
    permit: Option<Permit>,
}

impl SessionRegistry {
    pub fn new(audit: Arc<Audit>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(0), live: Mutex::default(), audit, clock })
    }

    /// Registers what is about to begin.
    pub fn register(self: &Arc<Self>, caller: &Caller, right: Right) -> Guard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let live = Live { caller: caller.clone(), right, cut: cut.clone() };
        self.lock().insert(number, live);
        Guard {
            registry: self.clone(),
            number,
            caller: caller.clone(),
            announced: None,
            since_ms: self.clock.now_ms(),
            cut,
            permit: None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn everybody(&self) -> Vec<Live> {
        self.lock().values().cloned().collect()
    }
}

impl Guard {
    /// Waits until the right is gone.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Does the work until it is done or the right is gone.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.cut() => None,
            done = work => Some(done),
        }
    }

    /// Keeps what it was counted by for as long as it goes on.
    pub fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Writes down that it began, and later that it ended. `what`: `ssh`, `exec` or the like.
    pub fn announce(&mut self, what: String, task_id: InstanceId) {
        self.note("session.begin", what.clone(), task_id);
        self.announced = Some((what, task_id));
    }

    fn note(&self, action: &'static str, detail: String, task_id: InstanceId) {
        let object = format!("vps {task_id}");
        let result = if self.cut.is_cancelled() { "cut" } else { "ok" };
        self.registry.audit.note(&self.caller, Entry { action, object, result, detail });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.number);
        if let Some((what, task_id)) = self.announced.take() {
            let seconds = (self.registry.clock.now_ms() - self.since_ms).max(0) / 1000;
            self.note("session.end", format!("{what}, after {seconds} s"), task_id);
        }
    }
}

/// Cuts what may not go on, for as long as the host runs.
pub async fn watch(app: Arc<App>, shutdown: CancellationToken) {
    let mut changes = app.accounts.changes();
    // A run before this one may have taken a change with it when it panicked.
    changes.mark_changed();
    loop {
        let all = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now_ms = app.clock.now_ms();
        // Many forwards of one person to one instance have one answer.
        let mut answers = HashMap::new();
        for live in app.sessions.everybody() {
            let Some(person) = live.caller.person() else { continue };
            let expired = person.expires_ms.is_some_and(|at_ms| at_ms <= now_ms);
            if !expired && !all {
                continue;
            }
            let proof = format!("{:?}", person.proof);
            let key = (person.id, proof, live.right, live.caller.touched());
            let stays = match answers.get(&key) {
                Some(stays) => *stays,
                None => {
                    let stays = !expired && may_stay(&app, &live).await;
                    answers.insert(key, stays);
                    stays
                }
            };
            if !stays {
                tracing::info!(user = person.username, right = ?live.right, "a session was cut");
                live.cut.cancel();
            }
        }
    }
}

async fn may_stay(app: &App, live: &Live) -> bool {
    match live.right {
        Right::Enter(task_id) => {
            still_authorized(app, &live.caller, Permission::Enter, task_id).await
        }
        Right::Ask { role, wish } => match wish.zip(live.caller.touched()) {
            Some((wish, task_id)) => still_authorized(app, &live.caller, wish, task_id).await,
            None => still_has_role(app, &live.caller, role).await,
        },
    }
}
