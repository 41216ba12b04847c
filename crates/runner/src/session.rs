//! The control connection to the host.
//!
//! ```text
//!  away --connect--> greeting --Welcome--> synced (orders in, observations out, a beat every 5 s)
//!    ^                  |--Refused--> away, asked again slowly     |
//!    +---------- wait with backoff <--- silence of 15 s, an error -+
//! ```
//!
//! Nothing here touches an instance: orders go to the supervisor, observations come from the board.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::{InstanceId, Inventory, Observation};
use kohakuriver_runner_link::backoff::Backoff;
use kohakuriver_runner_link::client::{LinkError, LinkStream, connect_control};
use kohakuriver_runner_link::frame::{FrameError, FrameStream};
use kohakuriver_runner_link::liveness::{HANDSHAKE_LIMIT, HEARTBEAT_INTERVAL, SILENCE_LIMIT};
use kohakuriver_runner_link::pki::{PkiError, RunnerIdentity};
use kohakuriver_runner_link::protocol::{
    Hello, InstanceReply, NodeReply, ToHost, ToRunner, VERSIONS,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::data_pool::DataPool;
use crate::driver::Shared;
use crate::inventory::{LoadMeter, detect_inventory};
use crate::streams::Streams;
use crate::supervisor::InstanceSupervisor;

/// The host said no; it has to be told otherwise first, by a person.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Observations should be current within a few seconds of a host's return, and fifty nodes that
/// connect every three seconds are no load.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// A connection that held this long was a good one.
const STABLE: Duration = Duration::from_secs(20);
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the host sent nothing for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
    #[error("the host refused this node: {reason}")]
    Refused { reason: String },
    #[error("the host uses another version of the protocol")]
    Unexpected,
    #[error("cannot renew this node's certificate")]
    Renewal(#[from] PkiError),
}

pub struct Session {
    supervisor: Arc<InstanceSupervisor>,
    shared: Arc<Shared>,
    identity: watch::Sender<RunnerIdentity>,
    streams: Arc<Streams>,
    inventory: watch::Sender<Option<Inventory>>,
}

impl Session {
    pub fn new(
        supervisor: Arc<InstanceSupervisor>,
        shared: Arc<Shared>,
        identity: watch::Sender<RunnerIdentity>,
        streams: Arc<Streams>,
    ) -> Self {
        Self { supervisor, shared, identity, streams, inventory: watch::Sender::new(None) }
    }

    /// Stays connected for as long as it is polled.
    pub async fn run(&self) {
        tokio::join!(self.keep_connected(), self.keep_inventory());
    }

    async fn keep_connected(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), LONGEST_WAIT);
        let mut last_trouble = String::new();
        loop {
            let began = Instant::now();
            let Err(error) = self.connect_and_serve(&mut last_trouble).await;
            let trouble = with_causes(&error);
            // The same error is logged once, not at every attempt.
            if trouble == last_trouble {
                tracing::debug!(error = trouble, "still not connected to the host");
            } else {
                tracing::warn!(error = trouble, "not connected to the host; instances run on");
                last_trouble = trouble;
            }
            if began.elapsed() >= STABLE {
                backoff.reset();
            }
            let wait = match error {
                SessionError::Refused { .. } | SessionError::Unexpected => REFUSED_WAIT,
                SessionError::Link(_)
                | SessionError::Frame(_)
                | SessionError::Silent
                | SessionError::Renewal(_) => backoff.next(clock::jitter()),
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn connect_and_serve(
        &self,
        trouble: &mut String,
    ) -> Result<std::convert::Infallible, SessionError> {
        let identity = self.identity.borrow().clone();
        let inventory = self.wait_for_inventory().await;
        let mut link = connect_control(&identity).await?;
        self.greet(&mut link, inventory.clone()).await?;
        tracing::info!(host = %identity.host_address, "connected to the host");
        trouble.clear();
        self.serve(link, inventory).await
    }

    async fn greet(
        &self,
        link: &mut FrameStream<LinkStream>,
        inventory: Inventory,
    ) -> Result<(), SessionError> {
        let hello = Hello {
            oldest_version: VERSIONS.0,
            newest_version: VERSIONS.1,
            runner_version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms: clock::now_ms(),
            inventory: inventory.bounded(),
        };
        let greeting = async {
            link.send(&ToHost::Hello(hello)).await?;
            link.receive::<ToRunner>().await
        };
        let answer = tokio::time::timeout(HANDSHAKE_LIMIT, greeting).await;
        match answer.map_err(|_| SessionError::Silent)?? {
            ToRunner::Welcome { .. } => Ok(()),
            ToRunner::Refused { reason } => Err(SessionError::Refused { reason }),
            ToRunner::Order(_)
            | ToRunner::SyncDone
            | ToRunner::HeartbeatAck
            | ToRunner::DialData { .. }
            | ToRunner::InstanceCommand { .. }
            | ToRunner::NodeQuery { .. }
            | ToRunner::Certificate { .. } => Err(SessionError::Unexpected),
        }
    }

    async fn serve(
        &self,
        link: FrameStream<LinkStream>,
        told: Inventory,
    ) -> Result<std::convert::Infallible, SessionError> {
        // Bounded: dial failures beyond this say nothing new.
        let (failures, mut dial_failures) = mpsc::channel(16);
        let identity = self.identity.subscribe();
        // Answers wait here while the link is busy; more questions than this are not open at once.
        let (answer, mut answers) = mpsc::channel(64);
        let pool = DataPool::start(Arc::clone(&self.streams), identity, failures);
        let mut talk = Connection { link, heard: Instant::now(), malformed: 0 };
        let mut ordered = HashSet::new();
        let mut changes = self.shared.board.subscribe();
        let mut inventory = self.inventory.subscribe();
        let mut told = told;
        let mut reported = self.report(&mut talk, 0).await?;
        talk.send(&ToHost::SyncDone).await?;

        let mut meter = LoadMeter::default();
        let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewals = tokio::time::interval(RENEWAL_CHECK);
        loop {
            let dead = talk.heard + SILENCE_LIMIT;
            tokio::select! {
                message = talk.receive() => {
                    talk.heard = Instant::now();
                    let Some(message) = message? else { continue };
                    match &message {
                        ToRunner::Order(order) => drop(ordered.insert(order.task_id)),
                        ToRunner::SyncDone => self.supervisor.report_unknown_to_host(&ordered),
                        ToRunner::Welcome { .. }
                        | ToRunner::Refused { .. }
                        | ToRunner::HeartbeatAck
                        | ToRunner::DialData { .. }
                        | ToRunner::Certificate { .. }
                        | ToRunner::InstanceCommand { .. }
                        | ToRunner::NodeQuery { .. } => {}
                    }
                    self.handle(message, &pool, &answer)?;
                }
                Ok(()) = changes.changed() => reported = self.report(&mut talk, reported).await?,
                Ok(()) = inventory.changed() => {
                    let now = inventory.borrow_and_update().clone();
                    if let Some(now) = now.filter(|now| *now != told) {
                        told = now.clone();
                        talk.send(&ToHost::Inventory { inventory: now.bounded() }).await?;
                    }
                }
                Some(error) = dial_failures.recv() => {
                    talk.send(&ToHost::DialFailed { error }).await?;
                }
                Some(message) = answers.recv() => talk.send(&message).await?,
                _ = beats.tick() => {
                    talk.send(&ToHost::Heartbeat { metrics: meter.measure() }).await?;
                }
                _ = renewals.tick() => {
                    let identity = self.identity.borrow().clone();
                    if identity.needs_renewal(clock::now_ms()) {
                        let csr_pem = identity.renewal_csr()?;
                        talk.send(&ToHost::RenewCertificate { csr_pem }).await?;
                    }
                }
                () = tokio::time::sleep_until(dead) => return Err(SessionError::Silent),
            }
        }
    }

    fn handle(
        &self,
        message: ToRunner,
        pool: &DataPool,
        answers: &mpsc::Sender<ToHost>,
    ) -> Result<(), SessionError> {
        match message {
            ToRunner::InstanceCommand { request, task_id, command } => {
                let (supervisor, answers) = (Arc::clone(&self.supervisor), answers.clone());
                tokio::spawn(async move {
                    let answer = supervisor.execute(task_id, command).await;
                    // The session may be over; then nobody waits for it.
                    let _ = answers.send(ToHost::InstanceReply { request, answer }).await;
                });
            }
            ToRunner::NodeQuery { request, query } => {
                let (supervisor, answers) = (Arc::clone(&self.supervisor), answers.clone());
                tokio::spawn(async move {
                    let answer = supervisor.query_node(query).await;
                    let _ = answers.send(ToHost::NodeReply { request, answer }).await;
                });
            }
            ToRunner::Order(order) => self.supervisor.order(*order),
            ToRunner::DialData { count } => pool.dial(count),
            ToRunner::Certificate { certificate_pem } => self.renewed(certificate_pem)?,
            ToRunner::Refused { reason } => return Err(SessionError::Refused { reason }),
            ToRunner::SyncDone | ToRunner::HeartbeatAck | ToRunner::Welcome { .. } => {}
        }
        Ok(())
    }

    fn renewed(&self, certificate_pem: String) -> Result<(), SessionError> {
        let fresh = self.identity.borrow().with_certificate(certificate_pem);
        fresh.save(self.shared.layout.data())?;
        self.identity.send_replace(fresh);
        tracing::info!("this node's certificate was renewed");
        Ok(())
    }

    /// Sends what is new on the board since `since`.
    async fn report(&self, talk: &mut Connection, since: u64) -> Result<u64, SessionError> {
        let (mark, fresh): (u64, Vec<(InstanceId, Observation)>) = self.shared.board.after(since);
        for (task_id, observation) in fresh {
            talk.send(&ToHost::Observation { task_id, observation }).await?;
            self.shared.board.forget_absent(task_id);
        }
        Ok(mark)
    }

    async fn wait_for_inventory(&self) -> Inventory {
        let mut receiver = self.inventory.subscribe();
        let known = receiver.wait_for(Option::is_some).await.map(|inventory| inventory.clone());
        match known {
            Ok(Some(inventory)) => inventory,
            Ok(None) | Err(_) => {
                detect_inventory(&self.shared.backends, self.shared.layout.data()).await
            }
        }
    }

    async fn keep_inventory(&self) {
        let mut first = detect_inventory(&self.shared.backends, self.shared.layout.data()).await;
        self.inventory.send_replace(Some(first.clone()));
        // A GPU that comes or goes is rare and asking for it is slow; the engine is asked often.
        for round in 1u64.. {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let now = if round.is_multiple_of(60) {
                detect_inventory(&self.shared.backends, self.shared.layout.data()).await
            } else {
                let mut now = first.clone();
                self.shared.backends.describe(&mut now).await;
                now
            };
            if now != first {
                first = now.clone();
                self.inventory.send_replace(Some(now));
            }
        }
    }
}

/// Messages of one session that may be none of the protocol: a newer host may say what this runner
/// does not know.
const MOST_MALFORMED: u32 = 100;

/// The connection and when it was last heard.
struct Connection {
    link: FrameStream<LinkStream>,
    heard: Instant,
    malformed: u32,
}

impl Connection {
    /// The next message; none where it was not understood. One order that cannot be read must not
    /// keep the others away. May be dropped at any await.
    async fn receive(&mut self) -> Result<Option<ToRunner>, SessionError> {
        match self.link.receive::<ToRunner>().await {
            Err(FrameError::Malformed(error)) if self.malformed < MOST_MALFORMED => {
                self.malformed += 1;
                tracing::warn!(%error, "a message of the host was not understood");
                Ok(None)
            }
            received => Ok(Some(received?)),
        }
    }

    /// Sends a message; in place of an answer that does not fit, one that says so. A host that takes
    /// nothing for this long is as gone as one that says nothing.
    async fn send(&mut self, message: &ToHost) -> Result<(), SessionError> {
        match self.try_send(message).await {
            Err(SessionError::Frame(FrameError::TooLarge { bytes, .. })) => {
                let what = name_of(message);
                tracing::error!(what, bytes, "a message is too large and was not sent");
                match replacement_of(message, bytes) {
                    Some(instead) => self.try_send(&instead).await,
                    None => Ok(()),
                }
            }
            other => other,
        }
    }

    async fn try_send(&mut self, message: &ToHost) -> Result<(), SessionError> {
        let sent = tokio::time::timeout(SILENCE_LIMIT, self.link.send(message)).await;
        sent.map_err(|_| SessionError::Silent)?.map_err(SessionError::from)
    }
}

/// Returns the replacement of a message that cannot be sent. Reports and inventories have bounds
/// that make this impossible, and are sent again at the next change.
fn replacement_of(message: &ToHost, bytes: usize) -> Option<ToHost> {
    match message {
        ToHost::InstanceReply { request, .. } => Some(ToHost::InstanceReply {
            request: *request,
            answer: InstanceReply::too_large(bytes),
        }),
        ToHost::NodeReply { request, .. } => {
            Some(ToHost::NodeReply { request: *request, answer: NodeReply::too_large(bytes) })
        }
        ToHost::Hello(_)
        | ToHost::Observation { .. }
        | ToHost::SyncDone
        | ToHost::Heartbeat { .. }
        | ToHost::Inventory { .. }
        | ToHost::DialFailed { .. }
        | ToHost::RenewCertificate { .. } => None,
    }
}

fn name_of(message: &ToHost) -> String {
    match message {
        ToHost::Hello(_) => "hello".to_owned(),
        ToHost::Observation { task_id, .. } => format!("report of {task_id}"),
        ToHost::SyncDone => "end of reports".to_owned(),
        ToHost::Heartbeat { .. } => "heartbeat".to_owned(),
        ToHost::Inventory { .. } => "inventory".to_owned(),
        ToHost::DialFailed { .. } => "failure to connect".to_owned(),
        ToHost::RenewCertificate { .. } => "certificate request".to_owned(),
        ToHost::InstanceReply { request, .. } => format!("answer {request}"),
        ToHost::NodeReply { request, .. } => format!("answer {request} of the node"),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
