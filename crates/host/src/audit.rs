//! The way into the audit log: many write, one task appends, as many entries at a time as have
//! come together.
//!
//! Who changes something is answered when it is written down. What only begins or ends, such as
//! a terminal, does not wait.

use kohakuriver_store::{NewAudit, Store};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::access::{Caller, Who};
use crate::clock::Clock;

/// Entries on their way; who waits makes no more of them.
const QUEUE: usize = 4096;
const AT_ONCE: usize = 256;
/// A longer detail is somebody's wish to fill the disk.
const LONGEST: usize = 500;

/// What is to be written down.
#[derive(Clone, Debug, Default)]
pub struct Entry<'a> {
    pub action: &'a str,
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub result: &'a str,
    pub detail: String,
}

/// One entry, and whom to tell that it is there.
type Queued = (NewAudit, Option<oneshot::Sender<()>>);

#[derive(Debug)]
pub struct Audit {
    queue: mpsc::Sender<Queued>,
    clock: Clock,
    writer: Mutex<Option<JoinHandle<()>>>,
    close: tokio_util::sync::CancellationToken,
}

impl Audit {
    /// Starts the task that writes.
    pub fn start(store: Store, clock: Clock) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        let close = tokio_util::sync::CancellationToken::new();
        let writer = tokio::spawn(write(store, entries, close.clone()));
        Self { queue, clock, writer: Mutex::new(Some(writer)), close }
    }

    /// Writes an entry, and waits until it is there.
    pub async fn record(&self, caller: &Caller, entry: Entry<'_>) {
        let (tell, told) = oneshot::channel();
        if self.queue.send((self.complete(caller, entry), Some(tell))).await.is_ok() {
            // An error here is the writer's end; it has said so.
            let _ = told.await;
        }
    }

    /// Writes an entry some time soon.
    pub fn note(&self, caller: &Caller, entry: Entry<'_>) {
        if let Err(error) = self.queue.try_send((self.complete(caller, entry), None)) {
            tracing::error!(%error, "an entry of the audit log was lost");
        }
    }

    /// Writes what is queued, and ends.
    pub async fn finish(&self) {
        self.close.cancel();
        if let Some(writer) = self.writer.lock().await.take() {
            let _ = writer.await;
        }
    }

    /// An entry as it is stored.
    pub fn complete(&self, caller: &Caller, entry: Entry<'_>) -> NewAudit {
        let name = match &caller.who {
            // Nobody has checked it.
            Who::Everybody { said: Some(said) } => format!("{said} (not logged in)"),
            Who::Everybody { said: None } | Who::Nobody | Who::Somebody(_) => caller.name(),
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

async fn write(
    store: Store,
    mut entries: mpsc::Receiver<Queued>,
    close: tokio_util::sync::CancellationToken,
) {
    loop {
        let mut batch = Vec::new();
        let got = tokio::select! {
            biased;
            got = entries.recv_many(&mut batch, AT_ONCE) => got,
            () = close.cancelled() => {
                entries.close();
                entries.recv_many(&mut batch, AT_ONCE).await
            }
        };
        if got == 0 {
            return;
        }
        let (batch, waiting): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if let Err(error) = store.append_audit(&batch).await {
            // What was done is done. The log of the host is the next best place.
            tracing::error!(%error, "the audit log cannot be written");
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
        for tell in waiting.into_iter().flatten() {
            let _ = tell.send(());
        }
    }
}
