//! The agent's life: listen, serve, and end the children when asked to stop.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_agent_protocol::{
    GUEST_PORT, StreamReply, StreamTarget, read_request, write_reply,
};
use kohakuriver_net::Socket;
use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::config::{AgentConfig, SOCKET_FILE};
use crate::error::AgentError;
use crate::launch::{Launcher, base_environment};
use crate::process::{Children, ReapMode};
use crate::session::Sessions;
use crate::ssh::{Peer, SshServer};
use crate::{exec, guest, relay, session, sys};

/// Children get this long to end after SIGTERM.
const END_GRACE: Duration = Duration::from_secs(5);
/// The runner sends its line at once.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
const PORT_RETRY: Duration = Duration::from_secs(30);
/// The runner opens one stream for each forwarded connection; an idle one holds two descriptors.
const MAX_STREAMS: usize = 4096;
/// Each is a process of a few megabytes.
const MAX_HELPERS: usize = 64;

/// The options of the agent; [`AgentOptions::new`] returns those of an instance.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub config_dir: PathBuf,
    pub run_dir: PathBuf,
    /// The program and its arguments that call [`crate::sftp_server`].
    pub sftp_server: Vec<OsString>,
    /// Those that call [`crate::files_server`].
    pub files_server: Vec<OsString>,
    /// Those that call [`crate::watch_server`].
    pub watch_server: Vec<OsString>,
    /// In a virtual machine: the port of the guest to listen on beside the socket.
    pub guest_port: Option<u16>,
}

impl AgentOptions {
    pub fn new(config_dir: &Path, run_dir: &Path) -> Self {
        Self {
            config_dir: config_dir.to_owned(),
            run_dir: run_dir.to_owned(),
            sftp_server: helper("--sftp-server"),
            files_server: helper("--files-server"),
            watch_server: helper("--watch-server"),
            guest_port: None,
        }
    }
}

/// This executable in another role.
fn helper(role: &str) -> Vec<OsString> {
    ["/proc/self/exe", "agent", role].map(OsString::from).to_vec()
}

/// Runs the agent until SIGTERM, then ends its children and returns.
///
/// It owns the calling process: it collects every child that ends, its own or not.
pub fn run(config_dir: &Path, run_dir: &Path) -> Result<(), AgentError> {
    run_with(AgentOptions::new(config_dir, run_dir))
}

/// Runs the agent of a virtual machine until SIGTERM: a service beside others, whose orphans are
/// init's. Its settings come from the seed disk, once in every boot.
pub fn run_guest(config_dir: &Path, run_dir: &Path) -> Result<(), AgentError> {
    guest::take_settings(config_dir)?;
    let path = run_dir.to_owned();
    guest::private_dir(run_dir).map_err(|source| AgentError::Listen { path, source })?;
    let guest_port = Some(GUEST_PORT);
    run_with(AgentOptions { guest_port, ..AgentOptions::new(config_dir, run_dir) })
}

/// Like [`run`], with other than the usual options.
pub fn run_with(options: AgentOptions) -> Result<(), AgentError> {
    sys::limit_allocator();
    sys::outlive_file_size_limit();
    sys::raise_file_limit();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(AgentError::Runtime)?
        .block_on(serve(options))
}

/// The state that all connections share.
pub(crate) struct Agent {
    config_dir: PathBuf,
    is_guest: bool,
    ssh: Option<Arc<SshServer>>,
    launcher: Arc<Launcher>,
    sessions: Arc<Sessions>,
    streams: Arc<Semaphore>,
    children: Arc<Children>,
    files: Helpers,
    watch: Helpers,
}

/// Processes that each serve one stream.
struct Helpers {
    words: Vec<OsString>,
    free: Semaphore,
}

impl Helpers {
    fn new(words: Vec<OsString>) -> Self {
        Self { words, free: Semaphore::new(MAX_HELPERS) }
    }
}

async fn serve(options: AgentOptions) -> Result<(), AgentError> {
    let config = AgentConfig::read(&options.config_dir)?;
    let secret = match options.guest_port {
        Some(port) => Some((guest::read_secret(&options.config_dir)?, port)),
        None => None,
    };
    let is_guest = secret.is_some();
    if std::process::id() != 1
        && !is_guest
        && let Err(error) = nix::sys::prctl::set_child_subreaper(true)
    {
        tracing::warn!(%error, "orphans of this agent's children go to somebody else");
    }
    // The handlers must exist before the first child and before anybody can ask us to stop.
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Runtime)?;
    let mode = if is_guest { ReapMode::Registered } else { ReapMode::All };
    let children = Arc::new(Children::new(mode));
    let reaper = Arc::clone(&children);
    let reaping = tokio::spawn(async move { reaper.reap().await });

    let env = base_environment(&config.env, is_guest);
    let launcher = Arc::new(Launcher { env: env.clone(), children: Arc::clone(&children) });
    let ssh = if config.ssh {
        let server =
            SshServer::new(&options.config_dir, env, options.sftp_server, Arc::clone(&children))?;
        Some(Arc::new(server))
    } else {
        None
    };
    let socket = options.run_dir.join(SOCKET_FILE);
    let listener =
        listen(&socket).map_err(|source| AgentError::Listen { path: socket.clone(), source })?;
    if let Some(ssh) = ssh.clone()
        && config.serve_port_22
    {
        tokio::spawn(serve_port(ssh, 22));
    }
    tracing::info!(task_id = %config.task_id, ssh = config.ssh, "agent ready");

    let agent = Arc::new(Agent {
        config_dir: options.config_dir,
        is_guest,
        ssh,
        sessions: Sessions::new(Arc::clone(&launcher)),
        launcher,
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        children: Arc::clone(&children),
        files: Helpers::new(options.files_server),
        watch: Helpers::new(options.watch_server),
    });
    if let Some((secret, port)) = secret {
        tokio::spawn(guest::serve(Arc::clone(&agent), secret, port));
    }
    tokio::select! {
        () = accept(listener, agent) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("agent stopping");
    let _ = std::fs::remove_file(&socket);
    children.end_all(END_GRACE).await;
    reaping.abort();
    Ok(())
}

/// Listens where an earlier agent of the same instance may have left its socket.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Nobody else may connect, not even between bind and chmod. The process has no other thread yet.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    umask(before);
    listener
}

async fn accept(listener: UnixListener, agent: Arc<Agent>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                // Out of descriptors, most likely: they come back as others close.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        agent.admit(stream.into());
    }
}

impl Agent {
    /// Serves a connection of the runner's, by a task of its own.
    pub fn admit(self: &Arc<Self>, stream: Socket) {
        let Ok(slot) = Arc::clone(&self.streams).try_acquire_owned() else {
            tracing::warn!(limit = MAX_STREAMS, "stream refused: too many");
            return;
        };
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            agent.handle(stream).await;
            drop(slot);
        });
    }

    async fn handle(&self, mut stream: Socket) {
        let request = match timeout(REQUEST_DEADLINE, read_request(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => {
                tracing::debug!(%error, "bad stream request");
                refuse(&mut stream, format!("bad request: {error}")).await;
                return;
            }
            Err(_) => return,
        };
        match request {
            StreamTarget::Ping => {
                let pong = StreamReply::Pong {
                    pid: std::process::id(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                let _ = write_reply(&mut stream, &pong).await;
            }
            StreamTarget::Ssh => match &self.ssh {
                None => {
                    refuse(&mut stream, "this VPS was created without --ssh".to_owned()).await;
                }
                Some(ssh) => {
                    if write_reply(&mut stream, &StreamReply::Ready).await.is_ok() {
                        Arc::clone(ssh).serve(stream, Peer::Runner);
                    }
                }
            },
            StreamTarget::Tcp { port } => relay::tcp(stream, port).await,
            StreamTarget::Udp { port } => relay::udp(stream, port).await,
            StreamTarget::Exec => {
                if write_reply(&mut stream, &StreamReply::Ready).await.is_ok() {
                    exec::serve(stream, &self.launcher).await;
                }
            }
            StreamTarget::Session => {
                if write_reply(&mut stream, &StreamReply::Ready).await.is_ok() {
                    session::serve(stream, &self.sessions).await;
                }
            }
            StreamTarget::Files => self.help(&self.files, stream).await,
            StreamTarget::Watch => self.help(&self.watch, stream).await,
            StreamTarget::Settings if self.is_guest => {
                guest::receive(stream, &self.config_dir).await;
            }
            StreamTarget::Attach | StreamTarget::Settings => {
                let error = format!("this agent serves no {} streams", request.name());
                refuse(&mut stream, error).await;
            }
        }
    }

    async fn help(&self, helpers: &Helpers, mut stream: Socket) {
        let Ok(_free) = helpers.free.try_acquire() else {
            let error = format!("{MAX_HELPERS} others do that here at once; try again later");
            refuse(&mut stream, error).await;
            return;
        };
        if write_reply(&mut stream, &StreamReply::Ready).await.is_err() {
            return;
        }
        if let Err(error) = crate::files::serve_stream(&self.children, &helpers.words, stream).await
        {
            tracing::warn!(%error, "a helper could not be started");
        }
    }
}

pub(crate) async fn refuse(stream: &mut Socket, error: String) {
    let _ = write_reply(stream, &StreamReply::Refused { error }).await;
}

/// Serves SSH on a port of the instance, for as long as nothing of the image does.
async fn serve_port(ssh: Arc<SshServer>, port: u16) {
    let mut told = false;
    let listener = loop {
        match bind(port) {
            Ok(listener) => break listener,
            Err(error) if !told => {
                told = true;
                tracing::info!(port, %error, "the port is not free, trying again now and then");
            }
            Err(_) => {}
        }
        sleep(PORT_RETRY).await;
    };
    tracing::info!(port, "serving SSH");
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let _ = stream.set_nodelay(true);
                let Ok(server) = stream.local_addr() else {
                    continue;
                };
                Arc::clone(&ssh).serve(stream.into(), Peer::Tcp { client, server });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Listens on both address families, or on IPv4 where the instance has no other.
fn bind(port: u16) -> io::Result<TcpListener> {
    let any = |address: SocketAddr| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(128)
    };
    match any((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            any((Ipv4Addr::UNSPECIFIED, port).into())
        }
        bound => bound,
    }
}
