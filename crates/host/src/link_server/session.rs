//! A runner's control connection, from hello to its end.

use std::sync::Arc;

use kohakuriver_model::bounds::{MAX_REMARK_BYTES, MAX_WORD_BYTES, bound_line};
use kohakuriver_model::{InstanceId, NodeId, NodeName, Observation, Observed};
use kohakuriver_runner_link::frame::{FrameError, FrameStream};
use kohakuriver_runner_link::liveness::{HANDSHAKE_LIMIT, SILENCE_LIMIT};
use kohakuriver_runner_link::protocol::{
    Hello, InstanceReply, NodeReply, ToHost, ToRunner, VERSIONS,
};
use kohakuriver_store::{NewEvent, StoreError};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use crate::host::App;
use crate::orders::{self, Prepared};
use crate::runner_registry::{Outgoing, Progress, Seen, Trouble};

/// Malformed messages accepted in one session: a newer runner may send messages that this host does
/// not know, but not only those.
const MOST_MALFORMED: u32 = 100;

type Frames = FrameStream<TlsStream<TcpStream>>;

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the runner sent nothing for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the first message was not a hello")]
    NoHello,
}

/// Serves the connection until it ends, then records when the node was last seen.
pub async fn serve(
    app: Arc<App>,
    node: NodeId,
    stream: TlsStream<TcpStream>,
    shutdown: CancellationToken,
) {
    let mut frames = FrameStream::new(stream);
    let (name, hello) = match greet(&app, &node, &mut frames).await {
        Ok(Some(greeting)) => greeting,
        Ok(None) => return,
        Err(error) => {
            tracing::info!(node.id = %node, %error, "runner connection failed at hello");
            return;
        }
    };
    let (session, mut queue, gone) = app.runners.register(&node, Seen::now(&app.clock));
    // The node may have been removed between the greeting and now; a removal from here on ends this
    // session.
    if !matches!(app.store.lookup_node_name(&node).await, Ok(Some(_))) {
        app.runners.forget(&node);
        return;
    }
    tracing::info!(node.name = %name, version = hello.runner_version, "runner connected");
    let end = tokio::select! {
        () = shutdown.cancelled() => None,
        () = gone.cancelled() => None,
        result = run(&app, &node, &name, &mut frames, &mut queue) => result.err(),
    };
    app.runners.unregister(&node, session);
    app.changes.notify();
    match end {
        Some(error) => tracing::info!(node.name = %name, %error, "runner disconnected"),
        None => tracing::info!(node.name = %name, "runner connection closed"),
    }
    if let Some(seen) = app.runners.seen(&node)
        && let Err(error) = app.store.record_seen(&node, seen.wall_ms).await
    {
        tracing::warn!(node.name = %name, %error, "could not record when the node was last seen");
    }
}

/// Exchanges hello and welcome. Returns `None` if the runner was refused with a message.
async fn greet(
    app: &App,
    node: &NodeId,
    frames: &mut Frames,
) -> Result<Option<(NodeName, Hello)>, SessionError> {
    let first = timeout(HANDSHAKE_LIMIT, frames.receive()).await;
    let ToHost::Hello(mut hello) = first.map_err(|_| SessionError::Silent)?? else {
        return Err(SessionError::NoHello);
    };
    bound_line(&mut hello.runner_version, MAX_WORD_BYTES);
    hello.inventory = hello.inventory.bounded();
    let Some(name) = app.store.lookup_node_name(node).await? else {
        let reason =
            "this node was removed from the cluster; join again with a new token".to_owned();
        frames.send(&ToRunner::Refused { reason }).await?;
        return Ok(None);
    };
    let version = hello.newest_version.min(VERSIONS.1);
    if version < hello.oldest_version.max(VERSIONS.0) {
        let reason = format!(
            "host {} and runner {} speak no common version of the link; update the older one",
            env!("CARGO_PKG_VERSION"),
            hello.runner_version
        );
        frames.send(&ToRunner::Refused { reason }).await?;
        return Ok(None);
    }
    let now_ms = app.clock.now_ms();
    // Peer and clock values: neither may panic the host.
    let skew = hello.now_ms.saturating_sub(now_ms);
    app.store.record_hello(node, &hello.inventory, &hello.runner_version, skew, now_ms).await?;
    frames.send(&ToRunner::Welcome { version, node_name: name.to_string(), now_ms }).await?;
    Ok(Some((name, hello)))
}

/// Sends the runner all its commands, then serves it until either side disconnects.
async fn run(
    app: &App,
    node: &NodeId,
    name: &NodeName,
    frames: &mut Frames,
    queue: &mut mpsc::Receiver<Outgoing>,
) -> Result<(), SessionError> {
    app.changes.notify();
    for row in app.store.list_instances_of(node).await? {
        send(app, node, frames, orders::prepare(&row).message(row.id)).await?;
    }
    send(app, node, frames, Some(ToRunner::SyncDone)).await?;
    // Measured from the last message of the runner, whatever is sent to it meanwhile.
    let mut heard = Instant::now();
    let mut pace = Pace::new(heard);
    let mut malformed = 0;
    loop {
        tokio::select! {
            waiting = queue.recv() => match waiting {
                Some(waiting) => {
                    let message = message_of(app, node, waiting).await?;
                    send(app, node, frames, message).await?;
                }
                None => return Ok(()),
            },
            frame = timeout_at(heard + SILENCE_LIMIT, frames.receive()) => {
                let message = match frame.map_err(|_| SessionError::Silent)? {
                    // A malformed message must not stop the node's other messages.
                    Err(FrameError::Malformed(error)) if malformed < MOST_MALFORMED => {
                        malformed += 1;
                        tracing::warn!(node.name = %name, %error, "malformed message ignored");
                        continue;
                    }
                    received => received?,
                };
                heard = Instant::now();
                app.runners.record_heartbeat(node, None, Seen::now(&app.clock));
                if is_written(&message) {
                    tokio::time::sleep(pace.take(heard)).await;
                }
                let answer = handle(app, node, name, message).await?;
                send(app, node, frames, answer).await?;
            }
        }
    }
}

/// Checks whether the host writes to disk, or computes a signature, for this message.
fn is_written(message: &ToHost) -> bool {
    match message {
        ToHost::Observation { .. }
        | ToHost::Inventory { .. }
        | ToHost::RenewCertificate { .. }
        | ToHost::DialFailed { .. } => true,
        ToHost::Hello(_)
        | ToHost::SyncDone
        | ToHost::Heartbeat { .. }
        | ToHost::InstanceReply { .. }
        | ToHost::NodeReply { .. } => false,
    }
}

/// Builds the current message of a queue entry; `None` where its instance is gone.
async fn message_of(
    app: &App,
    node: &NodeId,
    waiting: Outgoing,
) -> Result<Option<ToRunner>, SessionError> {
    match waiting {
        Outgoing::Message(message) => Ok(Some(message)),
        Outgoing::Order(id) => {
            // An unreadable row affects its own instance only.
            let row = app.store.lookup_instance(id).await.unwrap_or_else(|error| {
                tracing::error!(task.id = %id, %error, "command not sent");
                None
            });
            let row = row.filter(|row| row.node_id == *node);
            Ok(row.and_then(|row| orders::prepare(&row).message(row.id)))
        }
    }
}

impl Prepared {
    /// Returns the command to send. A failure is logged here, and the API reports it on the
    /// instance.
    fn message(self, id: InstanceId) -> Option<ToRunner> {
        match self {
            Self::Whole(message) => Some(message),
            Self::Reduced(message) => {
                tracing::warn!(task.id = %id, "command to end the instance sent without keys and environment");
                Some(message)
            }
            Self::TooLarge(bytes) => {
                tracing::error!(task.id = %id, bytes, "command too large, not sent");
                None
            }
        }
    }
}

/// Sends a message, if there is one. A runner that accepts nothing for this long counts as
/// disconnected; a message that does not fit a frame is dropped alone.
async fn send(
    app: &App,
    node: &NodeId,
    frames: &mut Frames,
    message: Option<ToRunner>,
) -> Result<(), SessionError> {
    let Some(message) = message else { return Ok(()) };
    let sent = timeout(SILENCE_LIMIT, frames.send(&message)).await;
    match sent.map_err(|_| SessionError::Silent)? {
        Err(FrameError::TooLarge { bytes, .. }) => {
            fail_locally(app, node, &message, bytes);
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Fails a query locally whose message could not be sent to the runner.
fn fail_locally(app: &App, node: &NodeId, message: &ToRunner, bytes: usize) {
    tracing::error!(node.id = %node, bytes, "message to runner too large, not sent");
    match message {
        ToRunner::InstanceCommand { request, .. } => {
            app.runners.answer(node, *request, InstanceReply::too_large(bytes));
        }
        ToRunner::NodeQuery { request, .. } => {
            app.runners.answer_node(node, *request, NodeReply::too_large(bytes));
        }
        ToRunner::Order(order) => {
            tracing::error!(task.id = %order.task_id, bytes, "command not sent");
        }
        ToRunner::Welcome { .. }
        | ToRunner::Refused { .. }
        | ToRunner::SyncDone
        | ToRunner::HeartbeatAck
        | ToRunner::DialData { .. }
        | ToRunner::Certificate { .. } => {}
    }
}

async fn handle(
    app: &App,
    node: &NodeId,
    name: &NodeName,
    message: ToHost,
) -> Result<Option<ToRunner>, SessionError> {
    match message {
        ToHost::Heartbeat { metrics } => {
            app.runners.record_heartbeat(node, Some(metrics), Seen::now(&app.clock));
            return Ok(Some(ToRunner::HeartbeatAck));
        }
        ToHost::Observation { task_id, observation } => {
            observe(app, node, name, task_id, observation.bounded()).await?;
        }
        ToHost::Inventory { inventory } => {
            if app.store.record_inventory(node, &inventory.bounded()).await? {
                app.changes.notify();
            }
        }
        ToHost::InstanceReply { request, answer } => {
            app.runners.answer(node, request, answer.bounded());
        }
        ToHost::NodeReply { request, answer } => {
            app.runners.answer_node(node, request, answer.bounded());
        }
        ToHost::DialFailed { mut error } => {
            bound_line(&mut error, MAX_REMARK_BYTES);
            app.runners.dial_failed(node, error);
        }
        ToHost::RenewCertificate { csr_pem } => {
            match app.ca.sign_runner(&csr_pem, node, app.clock.now_ms()) {
                Ok(certificate_pem) => return Ok(Some(ToRunner::Certificate { certificate_pem })),
                Err(error) => {
                    tracing::warn!(node.name = %name, %error, "invalid certificate request");
                }
            }
        }
        ToHost::SyncDone => tracing::debug!(node.name = %name, "runner has reported everything"),
        ToHost::Hello(_) => tracing::debug!(node.name = %name, "second hello ignored"),
    }
    Ok(None)
}

async fn observe(
    app: &App,
    node: &NodeId,
    name: &NodeName,
    task_id: InstanceId,
    observation: Observation,
) -> Result<(), SessionError> {
    if let Some(progress) = under_way(&observation) {
        // Applies only to the latest intent, and only from this node.
        let row = app.store.lookup_instance(task_id).await?;
        if row.is_some_and(|row| row.node_id == *node)
            && app.runners.set_progress(task_id, Some(progress))
        {
            app.changes.notify();
        }
        return Ok(());
    }
    let event = event(name, &observation);
    let now_ms = app.clock.now_ms();
    if app.store.record_observation(task_id, node, &observation, event, now_ms).await? {
        tracing::info!(task.id = %task_id, state = ?observation.state, "observed");
        if observation.state == Observed::Absent {
            app.runners.forget_task(task_id);
        } else {
            app.runners.set_progress(task_id, None);
        }
        app.changes.notify();
    }
    Ok(())
}

/// Returns the history event of an observation.
fn event(node: &NodeName, observation: &Observation) -> Option<NewEvent> {
    let (kind, detail) = match &observation.state {
        Observed::Running { .. } => {
            ("running", observation.address.map(|at| format!("at {at}")).unwrap_or_default())
        }
        Observed::Paused { .. } => ("paused", String::new()),
        Observed::Stopped { oom: true, .. } => {
            ("oom", "the kernel killed one of its processes: out of memory".to_owned())
        }
        Observed::Stopped { exit_code, .. } => {
            ("stopped", exit_code.map(|code| format!("exit code {code}")).unwrap_or_default())
        }
        Observed::Failed { message, .. } => ("failed", message.clone()),
        // The deletion is recorded where the row is deleted; the rest are steps.
        Observed::Absent | Observed::Provisioning { .. } | Observed::Blocked { .. } => return None,
    };
    let detail = match &observation.warning {
        Some(warning) if detail.is_empty() => warning.clone(),
        Some(warning) => format!("{detail}; {warning}"),
        None => detail,
    };
    Some(NewEvent { kind, actor: format!("node {node}"), detail })
}

/// Returns the progress of work under way. It is kept in memory only: the runner reports it again.
fn under_way(observation: &Observation) -> Option<Progress> {
    let generation = observation.generation;
    match observation.state.clone() {
        Observed::Provisioning { step, percent } => {
            Some(Progress { step, percent, generation, trouble: None })
        }
        Observed::Blocked { code, message, hint } => {
            let trouble = Some(Trouble { code, message, hint });
            Some(Progress { step: "waiting".to_owned(), percent: None, generation, trouble })
        }
        Observed::Absent
        | Observed::Running { .. }
        | Observed::Paused { .. }
        | Observed::Stopped { .. }
        | Observed::Failed { .. } => None,
    }
}
