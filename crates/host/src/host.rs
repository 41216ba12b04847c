//! Starting and stopping the host.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::{NodeId, NodeName, Status, public_status};
use kohakuriver_runner_link::client::HostAddress;
use kohakuriver_runner_link::pki::{Ca, PkiError, RunnerIdentity};
use kohakuriver_runner_link::{tls, token::JoinToken};
use kohakuriver_store::{NewEvent, NodeRow, Store, StoreError};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::Accounts;
use crate::audit::Audit;
use crate::config::History;
use crate::https::{HttpsMode, HttpsServer, TlsError};
use crate::limits::{ByteLimit, Limit};
use crate::oidc::Oidc;
use crate::pace::Pace;
use crate::runner_registry::{LocalNode, RunnerRegistry, Seen};
use crate::sessions::registry::SessionRegistry;
use crate::slots::Slots;
use crate::ssh_ca::SshCa;
use crate::ssh_keys::KeyError;
use crate::supervise::Supervisor;
use crate::watch::Changes;
use crate::{
    Clock, HostConfig, accounts, authorized_keys_sync, gateway, http, join, link_server, present,
    sessions,
};

/// The time that open connections have to end at the stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// The interval of returning free memory. It takes some milliseconds of one thread.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// A WebSocket may hold a message of a megabyte in each direction.
const MAX_SOCKETS: usize = 1024;
const MAX_SOCKETS_OF_ONE: usize = 32;

/// Bytes of files as JSON. A body larger than an account's share takes all of it.
const BODY_BYTES: usize = 128 * 1024 * 1024;
const BODY_BYTES_OF_ONE: usize = 48 * 1024 * 1024;
/// Bytes that may wait in this process for stalled instances, of all accounts and of each.
const WAITING_BYTES: usize = 96 * 1024 * 1024;
const WAITING_BYTES_OF_ONE: usize = 16 * 1024 * 1024;

const PRUNE_EVERY_MS: i64 = 3600 * 1000;

/// The state that all requests share.
#[derive(Debug)]
pub struct App {
    pub config: HostConfig,
    pub store: Store,
    pub ca: Ca,
    pub ssh_ca: SshCa,
    pub accounts: Accounts,
    /// The rate limit of each account's shares and offers.
    pub sharing_pace: Pace,
    pub oidc: Option<Oidc>,
    pub audit: Arc<Audit>,
    pub sessions: Arc<SessionRegistry>,
    pub runners: RunnerRegistry,
    pub changes: Changes,
    pub clock: Clock,
    pub started: Seen,
    /// Distinguishes this cluster's ids from another's.
    pub cluster: u16,
    pub tasks: TaskTracker,
    /// Ends requests that would otherwise last as long as their client likes.
    pub shutdown: CancellationToken,
    /// Requests of the API in progress.
    pub requests: http::Requests,
    /// Open WebSockets.
    pub sockets: Limit,
    /// Open streams into instances, by all protocols.
    pub streams: Limit,
    /// Request and response bodies that are whole in memory.
    pub bodies: ByteLimit,
    /// Bytes on their way into instances that these have not received yet.
    pub waiting: ByteLimit,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the data directory {}", path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("another kohakuriver is running on the data directory {}", path.display())]
    AlreadyRunning { path: PathBuf },
    #[error("port {port} of {bind} is taken by another program")]
    PortTaken { what: &'static str, flag: &'static str, bind: IpAddr, port: u16 },
    #[error("cannot listen on {bind}:{port}")]
    Listen { bind: IpAddr, port: u16, source: io::Error },
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Https(#[from] TlsError),
    #[error("the database in {} cannot be opened", path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("the gateway's host key cannot be used")]
    GatewayKey(#[source] KeyError),
    #[error("the key that signs SSH certificates cannot be used")]
    UserCa(#[source] KeyError),
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    app: Arc<App>,
    shutdown: CancellationToken,
    _lock: Flock<fs::File>,
}

impl Host {
    /// Opens all files and ports, and starts to serve. On failure, nothing has been started.
    pub async fn start(mut config: HostConfig, clock: Clock) -> Result<Self, StartError> {
        let lock = lock_data_dir(&config)?;
        let http = listen(config.bind, config.port, "the API", "--port").await?;
        let ssh = listen(config.bind, config.ssh_port, "the SSH gateway", "--ssh-port").await?;
        let link =
            listen(config.link_bind, config.link_port, "the runners' link", "--link-port").await?;
        // Port 0 means any free one; tokens and clients need the actual one.
        let bound = |listener: &TcpListener| listener.local_addr().map(|a| a.port()).unwrap_or(0);
        config.port = bound(&http);
        config.ssh_port = bound(&ssh);
        config.link_port = bound(&link);
        if config.link_address.port == 0 {
            config.link_address.port = config.link_port;
        }
        let now_ms = clock.now_ms();
        let ca = Ca::load_or_create(&config.data_dir, now_ms)?;
        if let Err(error) = ca.check_validity(now_ms) {
            tracing::warn!(
                %error,
                "browsers and other clients will reject this host's certificates: set the clock, \
                 or replace ca.pem as docs/concepts/tls.md describes"
            );
        }
        let link_tls = tls::host_config(&ca, ca.issue_host(now_ms)?)?;
        let https = HttpsServer::new(&config, &ca, now_ms)?;
        if let Some(https) = &https {
            config.names.extend_from_slice(https.names());
        }
        let gateway_configs =
            gateway::ssh_configs(&config.data_dir).map_err(StartError::GatewayKey)?;
        let ssh_ca = SshCa::load_or_create(&config.data_dir).map_err(StartError::UserCa)?;
        let path = config.data_dir.join("host.db");
        let store = Store::open(&path)
            .await
            .map_err(|source| StartError::Store { path: config.data_dir.clone(), source })?;
        let audit = Arc::new(Audit::start(store.clone(), clock.clone()));
        let app = Arc::new(App {
            accounts: Accounts::default(),
            sharing_pace: Pace::default(),
            oidc: config.auth.oidc.clone().map(Oidc::new),
            sessions: SessionRegistry::new(audit.clone(), clock.clone()),
            audit,
            cluster: u16::from_str_radix(&ca.fingerprint()[..4], 16).unwrap_or(0),
            config,
            store,
            ca,
            ssh_ca,
            runners: RunnerRegistry::default(),
            changes: Changes::default(),
            started: Seen::now(&clock),
            clock,
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            requests: http::Requests::default(),
            sockets: Limit::new(MAX_SOCKETS, MAX_SOCKETS_OF_ONE),
            streams: sessions::open::stream_limit(),
            bodies: ByteLimit::new(BODY_BYTES, BODY_BYTES_OF_ONE),
            waiting: ByteLimit::new(WAITING_BYTES, WAITING_BYTES_OF_ONE),
        });
        let shutdown = app.shutdown.clone();
        let tls = https.as_ref().map(HttpsServer::config);
        let supervisor = Supervisor::new(app.tasks.clone(), shutdown.clone());
        // The handles that each run of a task gets.
        let shared = || (app.clone(), shutdown.clone());
        let (bind, link_bind) = (app.config.bind, app.config.link_bind);
        let (port, ssh_port, link_port) =
            (app.config.port, app.config.ssh_port, app.config.link_port);
        let failed = |bind, port| move |source| StartError::Listen { bind, port, source };
        let (each, end) = shared();
        let serve = move |listener| http::serve(each.clone(), listener, tls.clone(), end.clone());
        supervisor.keep_listening("API", http, serve).map_err(failed(bind, port))?;
        let (each, end) = shared();
        let serve = move |listener| {
            gateway::serve(each.clone(), listener, gateway_configs.clone(), end.clone())
        };
        supervisor.keep_listening("SSH gateway", ssh, serve).map_err(failed(bind, ssh_port))?;
        let (each, end) = shared();
        let serve = move |listener| {
            link_server::serve(each.clone(), listener, link_tls.clone(), end.clone())
        };
        supervisor.keep_listening("link", link, serve).map_err(failed(link_bind, link_port))?;
        if let Some(https) = https {
            let https = Arc::new(tokio::sync::Mutex::new(https));
            let (each, end) = shared();
            supervisor.keep("certificates", move || {
                let (https, app, end) = (https.clone(), each.clone(), end.clone());
                async move { https.lock().await.keep_fresh(app, end).await }
            });
        }
        let (each, end) = shared();
        supervisor.keep("watch of nodes", move || watch_silence(each.clone(), end.clone()));
        let (each, end) = shared();
        supervisor.keep("watch of sessions", move || {
            sessions::registry::watch(each.clone(), end.clone())
        });
        if app.config.auth.enabled {
            let (each, end) = shared();
            supervisor.keep("registered keys", move || {
                authorized_keys_sync::keep_fresh(each.clone(), end.clone())
            });
        }
        let (each, end) = shared();
        supervisor.keep("return of memory", move || return_memory(each.clone(), end.clone()));
        Ok(Self { app, shutdown, _lock: lock })
    }

    /// Returns the address of the API.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::new(self.app.config.bind, self.app.config.port)
    }

    /// Returns the scheme of the API's URL.
    pub fn scheme(&self) -> &'static str {
        if self.app.config.https == HttpsMode::Off { "http" } else { "https" }
    }

    /// Returns the URL of the API and the pages. A host that listens on every address uses the name
    /// that its runners use.
    pub fn api_url(&self) -> String {
        let HostConfig { bind, port, link_address, .. } = &self.app.config;
        let host = if bind.is_unspecified() { link_address.host.clone() } else { bind.to_string() };
        format!("{}://{}", self.scheme(), HostAddress { host, port: *port })
    }

    /// Returns the fingerprint for users to compare, if this host's own CA signs its certificate.
    pub fn people_fingerprint(&self) -> Option<String> {
        (self.app.config.https == HttpsMode::OwnCa).then(|| self.app.ca.fingerprint())
    }

    /// Creates an invitation for the first admin, if authentication is on and there is no admin.
    pub async fn setup_invitation(&self) -> Result<Option<String>, StoreError> {
        self.app.accounts.setup_invitation(&self.app).await
    }

    /// Returns the address of the SSH gateway.
    pub fn ssh_address(&self) -> SocketAddr {
        SocketAddr::new(self.app.config.bind, self.app.config.ssh_port)
    }

    /// Returns the address that runners connect to.
    pub fn link_address(&self) -> &HostAddress {
        &self.app.config.link_address
    }

    /// Creates a token for a runner in this process, which may rejoin the node of that name if
    /// there is one.
    pub async fn create_join_token(&self, name: &NodeName) -> Result<JoinToken, StoreError> {
        let ttl = Duration::from_secs(60);
        let (token, _) = join::create_token(&self.app, ttl, None, Some(name), None).await?;
        Ok(token)
    }

    /// Registers a node's runner as part of this process.
    pub fn set_local(&self, node: &NodeId, local: Arc<dyn LocalNode>) {
        self.app.runners.set_local(node, local);
    }

    /// Returns whether a runner's identity is from this cluster.
    pub fn issued(&self, identity: &RunnerIdentity) -> bool {
        identity.ca_pem == self.app.ca.certificate_pem()
    }

    /// Returns whether the host knows this node; a runner whose node was removed must join again.
    pub async fn knows(&self, node: &NodeId) -> Result<bool, StoreError> {
        Ok(self.app.store.lookup_node_name(node).await?.is_some())
    }

    /// Stops accepting, gives open connections a moment, then closes the database.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.app.tasks.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.app.tasks.wait()).await.is_err() {
            tracing::debug!("closing connections that did not end");
        }
        self.app.audit.finish().await;
        self.app.store.close().await;
    }
}

/// Locks the data directory. The kernel releases the lock when the process ends, however it ends.
fn lock_data_dir(config: &HostConfig) -> Result<Flock<fs::File>, StartError> {
    let path = config.data_dir.clone();
    let failed = |source| StartError::DataDir { path: path.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.join("lock"))
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| StartError::AlreadyRunning { path: path.clone() })
}

async fn listen(
    bind: IpAddr,
    port: u16,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, StartError> {
    TcpListener::bind((bind, port)).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            StartError::PortTaken { what, flag, bind, port }
        } else {
            StartError::Listen { bind, port, source }
        }
    })
}

/// Accepts the next connection. If file descriptors run out, an unauthenticated connection is
/// closed.
pub async fn accept(listener: &TcpListener, what: &str, slots: &Slots) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if is_exhausted(&error) {
                    slots.shed();
                }
                accept_failed(what, &error).await;
            }
        }
    }
}

/// Logs a failed accept, and delays the next one if descriptors or memory ran out, so that the loop
/// does not spin. Other errors concern one connection alone.
pub async fn accept_failed(what: &str, error: &io::Error) {
    if is_exhausted(error) {
        tracing::warn!(%error, "accepting a {what} connection failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    } else {
        tracing::debug!(%error, "a {what} connection ended before it was accepted");
    }
}

/// Returns whether no connection can be accepted until resources are released.
fn is_exhausted(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    error.raw_os_error().is_none_or(|code| [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(&code))
}

/// Returns the free memory of ended streams and requests to the kernel, some seconds later.
async fn return_memory(app: Arc<App>, shutdown: CancellationToken) {
    let mut seen = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TRIM_EVERY) => {}
        }
        let turns = app.streams.turns() + app.requests.turns();
        if turns != seen {
            seen = turns;
            let _ = tokio::task::spawn_blocking(kohakuriver_net::return_free_memory).await;
        }
    }
}

/// Wakes waiters and records an event when a node has been silent for so long that the status of
/// its instances changes. Also removes old history.
async fn watch_silence(app: Arc<App>, shutdown: CancellationToken) {
    let mut seen = std::collections::HashMap::new();
    let mut prune_at = app.clock.steady_ms();
    let mut pruned_ms = app.clock.now_ms();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let (now_ms, steady_ms) = (app.clock.now_ms(), app.clock.steady_ms());
        if steady_ms >= prune_at {
            prune_at = steady_ms + PRUNE_EVERY_MS;
            lapse(&app, std::mem::replace(&mut pruned_ms, now_ms), now_ms).await;
            let History { audit, events } = app.config.history;
            if let Err(error) = app.store.prune(events, now_ms).await {
                tracing::warn!(%error, "removing old events failed");
            }
            match app.store.prune_audit(audit, now_ms).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "old entries of the audit log were removed"),
                Err(error) => tracing::warn!(%error, "removing old audit entries failed"),
            }
            if let Err(error) = app.store.prune_credentials(now_ms).await {
                tracing::warn!(%error, "removing expired sessions failed");
            }
        }
        expire_requests(&app, now_ms).await;
        let Ok(nodes) = app.store.list_nodes().await else {
            continue;
        };
        for node in nodes {
            let now_seen = present::is_node_seen(&app, &node.id);
            // A starting host assumes that every node is online.
            if seen.insert(node.id.clone(), now_seen).unwrap_or(true) == now_seen {
                continue;
            }
            if !now_seen {
                tracing::warn!(node.name = %node.name, "node lost: it is silent");
            }
            if let Err(error) = record_silence(&app, &node, now_seen).await {
                tracing::warn!(node.name = %node.name, %error, "recording events failed");
            }
            app.runners.count_change(&node.id);
            app.changes.notify();
        }
    }
}

/// Has rights checked again if the term of an account at its provider ended between two times: its
/// registered keys must leave the VPSes then.
async fn lapse(app: &App, after_ms: i64, until_ms: i64) {
    let term_ms = accounts::millis(app.config.auth.provider_life);
    match app.store.has_lapsed(after_ms - term_ms, until_ms - term_ms).await {
        Ok(false) => {}
        Ok(true) => app.accounts.changed(),
        Err(error) => tracing::warn!(%error, "checking accounts of the provider failed"),
    }
}

/// Rejects requests that were not decided in time.
async fn expire_requests(app: &App, now_ms: i64) {
    let life = app.config.auth.request_life;
    let days = life.as_secs() / (24 * 3600);
    let reason = format!("not decided within {days} days");
    let before_ms = now_ms - accounts::millis(life);
    match app.store.expire_requests(before_ms, &reason, now_ms).await {
        Ok(0) => {}
        Ok(_) => app.changes.notify(),
        Err(error) => tracing::warn!(%error, "rejecting old requests failed"),
    }
}

/// Records an event for every instance that may be running on the node.
async fn record_silence(app: &App, node: &NodeRow, seen: bool) -> Result<(), StoreError> {
    let (kind, detail) = if seen {
        ("found", format!("node '{}' is back", node.name))
    } else {
        let silence = app.config.lost_after.as_secs();
        ("lost", format!("node '{}' was silent for {silence} s", node.name))
    };
    let event = NewEvent { kind, actor: "host".to_owned(), detail };
    for row in app.store.list_instances_of(&node.id).await? {
        let alive = public_status(&row.intent, row.observation.as_ref(), false) == Status::Lost;
        if alive {
            app.store.record_event(row.id, &event, app.clock.now_ms()).await?;
        }
    }
    Ok(())
}
