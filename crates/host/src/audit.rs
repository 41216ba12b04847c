//! Appends to the audit log: many tasks queue entries, one task writes them in batches.
//!
//! A request that changes anything is answered when its entry is in the log, or counted if its
//! sender makes too many ([`fold`]). Beginnings and ends of sessions do not wait.

mod fold;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kohakuriver_store::{NewAudit, Store};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::access::{Caller, Principal};
use crate::clock::Clock;
use crate::supervise;

use fold::Fold;

/// The queue's length; a task that waits for its entry queues no more of them.
const QUEUE: usize = 4096;
const AT_ONCE: usize = 256;
/// The bound of a detail, so that callers cannot fill the disk with long ones.
const LONGEST: usize = 500;
/// How often counted entries that are due are written.
const DUE_EVERY: Duration = Duration::from_secs(5);

/// An entry to write.
#[derive(Clone, Debug, Default)]
pub struct Entry<'a> {
    pub action: &'a str,
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub result: &'a str,
    pub detail: String,
}

/// A queued entry, and the sender to notify once it is stored.
type Queued = (NewAudit, Option<oneshot::Sender<()>>);

#[derive(Debug)]
pub struct Audit {
    queue: mpsc::Sender<Queued>,
    fold: Arc<std::sync::Mutex<Fold>>,
    clock: Clock,
    writer: Mutex<Option<JoinHandle<()>>>,
    close: tokio_util::sync::CancellationToken,
}

impl Audit {
    /// Starts the task that writes.
    pub fn start(store: Store, clock: Clock) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        let close = tokio_util::sync::CancellationToken::new();
        let fold = Arc::new(std::sync::Mutex::new(Fold::default()));
        let writer = Arc::new(Writer { store, fold: fold.clone(), clock: clock.clone() });
        // Queued entries outlive a panic of the task that writes them.
        let (entries, end) = (Arc::new(Mutex::new(entries)), close.clone());
        let task = move || {
            let (writer, entries, end) = (writer.clone(), entries.clone(), end.clone());
            async move { writer.run(&mut *entries.lock().await, end).await }
        };
        let writer = tokio::spawn(supervise::keep_running("audit log", close.clone(), task));
        Self { queue, fold, clock, writer: Mutex::new(Some(writer)), close }
    }

    /// Writes an entry, and waits until it is stored.
    pub async fn record(&self, caller: &Caller, entry: Entry<'_>) {
        let Some(entry) = self.admit(self.complete(caller, entry)) else { return };
        let (sender, told) = oneshot::channel();
        let action = entry.action.clone();
        let sent = self.queue.send((entry, Some(sender))).await.is_ok();
        if !sent || told.await.is_err() {
            tracing::error!(action, "an entry may be missing from the audit log");
        }
    }

    /// Queues an entry and returns at once.
    pub fn note(&self, caller: &Caller, entry: Entry<'_>) {
        let Some(entry) = self.admit(self.complete(caller, entry)) else { return };
        if let Err(error) = self.queue.try_send((entry, None)) {
            tracing::error!(%error, "an entry of the audit log was lost");
        }
    }

    fn admit(&self, entry: NewAudit) -> Option<NewAudit> {
        self.fold.lock().unwrap_or_else(PoisonError::into_inner).admit(entry)
    }

    /// Writes the queue, and ends the task.
    pub async fn finish(&self) {
        self.close.cancel();
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
    }

    /// Completes an entry with caller and time, as it is stored.
    pub fn complete(&self, caller: &Caller, entry: Entry<'_>) -> NewAudit {
        let name = match &caller.principal {
            // The name has not been checked.
            Principal::AuthDisabled { claimed_name: Some(claimed_name) } => {
                format!("{claimed_name} (not logged in)")
            }
            Principal::AuthDisabled { claimed_name: None }
            | Principal::Anonymous
            | Principal::Account(_) => caller.name(),
        };
        NewAudit {
            at_ms: self.clock.now_ms(),
            actor: name,
            actor_id: caller.user_id().map(|id| id.0),
            address: caller.address.map(|address| address.to_string()).unwrap_or_default(),
            action: entry.action.to_owned(),
            object: bounded(entry.object),
            result: entry.result.to_owned(),
            detail: bounded(entry.detail),
        }
    }
}

fn bounded(mut text: String) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// The state of the task that appends.
struct Writer {
    store: Store,
    fold: Arc<std::sync::Mutex<Fold>>,
    clock: Clock,
}

impl Writer {
    async fn run(
        &self,
        entries: &mut mpsc::Receiver<Queued>,
        close: tokio_util::sync::CancellationToken,
    ) {
        let mut due = tokio::time::interval(DUE_EVERY);
        loop {
            let mut batch = Vec::new();
            let got = tokio::select! {
                biased;
                got = entries.recv_many(&mut batch, AT_ONCE) => got,
                () = close.cancelled() => {
                    entries.close();
                    entries.recv_many(&mut batch, AT_ONCE).await
                }
                _ = due.tick() => {
                    self.append(self.counted(Fold::due)).await;
                    continue;
                }
            };
            if got == 0 {
                break;
            }
            let (batch, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            self.append(batch).await;
            for sender in waiting.into_iter().flatten() {
                let _ = sender.send(());
            }
        }
        self.append(self.counted(Fold::rest)).await;
    }

    fn counted(&self, take: impl FnOnce(&mut Fold, i64) -> Vec<NewAudit>) -> Vec<NewAudit> {
        let mut fold = self.fold.lock().unwrap_or_else(PoisonError::into_inner);
        take(&mut fold, self.clock.now_ms())
    }

    async fn append(&self, batch: Vec<NewAudit>) {
        if batch.is_empty() {
            return;
        }
        let Err(error) = self.store.append_audit(&batch).await else { return };
        // The acts have taken effect. The host's own log is the next best place for them.
        tracing::error!(%error, "writing the audit log failed");
        for entry in &batch {
            tracing::error!(
                actor = entry.actor,
                action = entry.action,
                object = entry.object,
                result = entry.result,
                "not in the audit log"
            );
        }
    }
}
