//! Who is inside which instance now: terminals, SSH, forwards, exec. Each has a beginning and an
//! end in the audit log, and ends at once when whoever opened it may not be there any more.
//!
//! ```text
//!  enter -> Guard ... relay ... dropped: "end" is written down
//!                 \ accounts, shares or keys change -> still allowed? no -> cut
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kohakuriver_model::TaskId;
use tokio_util::sync::CancellationToken;

use crate::access::{Caller, Wish, still_authorized};
use crate::audit::{Audit, Entry};
use crate::clock::Clock;
use crate::host::App;

/// What expires by itself, such as a token, is noticed within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Everybody who is in.
#[derive(Debug)]
pub struct Presence {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Live>>,
    audit: Arc<Audit>,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Live {
    caller: Caller,
    task_id: TaskId,
    cut: CancellationToken,
}

/// One who is in. Dropping it is the end.
#[derive(Debug)]
pub struct Guard {
    presence: Arc<Presence>,
    number: u64,
    caller: Caller,
    task_id: TaskId,
    /// What it is, once it is written down that it began.
    announced: Option<String>,
    since_ms: i64,
    cut: CancellationToken,
}

impl Presence {
    pub fn new(audit: Arc<Audit>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(0), live: Mutex::default(), audit, clock })
    }

    /// Somebody has got in.
    pub fn arrive(self: &Arc<Self>, caller: &Caller, task_id: TaskId) -> Guard {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cut = CancellationToken::new();
        let live = Live { caller: caller.clone(), task_id, cut: cut.clone() };
        self.lock().insert(number, live);
        Guard {
            presence: self.clone(),
            number,
            caller: caller.clone(),
            task_id,
            announced: None,
            since_ms: self.clock.now_ms(),
            cut,
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
    /// Waits until they may not be there any more.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Does the work until it is done or they may not be there any more.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.cut() => None,
            done = work => Some(done),
        }
    }

    /// Writes down that it began, and later that it ended. `what`: `ssh`, `exec` or the like.
    pub fn announce(&mut self, what: String) {
        self.note("session.begin", what.clone());
        self.announced = Some(what);
    }

    fn note(&self, action: &'static str, detail: String) {
        let object = format!("vps {}", self.task_id);
        let result = if self.cut.is_cancelled() { "cut" } else { "ok" };
        self.presence.audit.note(&self.caller, Entry { action, object, result, detail });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.presence.lock().remove(&self.number);
        if let Some(what) = self.announced.take() {
            let seconds = (self.presence.clock.now_ms() - self.since_ms).max(0) / 1000;
            self.note("session.end", format!("{what}, after {seconds} s"));
        }
    }
}

/// Cuts those who may not stay, for as long as the host runs.
pub async fn watch(app: Arc<App>, shutdown: CancellationToken) {
    let mut changes = app.accounts.changes();
    loop {
        let all = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now_ms = app.clock.now_ms();
        // Many forwards of one person to one instance have one answer.
        let mut answers = HashMap::new();
        for live in app.presence.everybody() {
            let Some(person) = live.caller.person() else { continue };
            let expired = person.expires_ms.is_some_and(|at_ms| at_ms <= now_ms);
            if !expired && !all {
                continue;
            }
            let proof = format!("{:?}", person.proof);
            let key = (person.id, proof, live.task_id);
            let stays = match answers.get(&key) {
                Some(stays) => *stays,
                None => {
                    let stays = !expired
                        && still_authorized(&app, &live.caller, Wish::Enter, live.task_id).await;
                    answers.insert(key, stays);
                    stays
                }
            };
            if !stays {
                tracing::info!(user = person.username, task.id = %live.task_id, "a session was cut");
                live.cut.cancel();
            }
        }
    }
}
