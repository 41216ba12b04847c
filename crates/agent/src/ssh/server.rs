use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::handler::Connection;
use crate::config::HOST_KEY_FILE;
use crate::error::AgentError;
use crate::process::Children;

/// People and their tools open a handful; beyond this it is a runaway loop.
const MAX_CONNECTIONS: usize = 128;
/// From the first byte to a successful login.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// Clients offer every key they hold, and the library counts each offer that is turned down as an attempt.
const MAX_AUTH_ATTEMPTS: usize = 64;
/// Received but not yet consumed per channel, in messages of at most 32 KiB: the window plus room for small ones.
pub(super) const CHANNEL_BUFFER: usize = 128;
const WINDOW: u32 = 4 * 1024 * 1024;
/// The largest data that OpenSSH itself uses.
const MAX_PACKET: u32 = 32 * 1024;

/// Only what runs on the CPU's AES instructions: OpenSSH clients prefer chacha20-poly1305 and the client's order
/// decides, so offering it would halve the throughput of nearly everyone. Without AES instructions GCM still works.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// Where a connection came from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Through the runner's socket.
    Runner,
    Tcp {
        client: SocketAddr,
        server: SocketAddr,
    },
}

/// What all SSH connections of the instance share.
#[derive(Debug)]
pub(crate) struct SshServer {
    config: Arc<Config>,
    connections: Arc<Semaphore>,
    pub config_dir: PathBuf,
    pub env: BTreeMap<String, String>,
    /// The program and arguments that serve SFTP on standard input and output.
    pub sftp_server: Vec<OsString>,
    pub children: Arc<Children>,
}

impl SshServer {
    pub fn new(
        config_dir: &Path,
        env: BTreeMap<String, String>,
        sftp_server: Vec<OsString>,
        children: Arc<Children>,
    ) -> Result<Self, AgentError> {
        let path = config_dir.join(HOST_KEY_FILE);
        let host_key = russh::keys::load_secret_key(&path, None)
            .map_err(|source| AgentError::HostKey { path, source })?;
        let mut methods = MethodSet::empty();
        methods.push(MethodKind::PublicKey);
        let config = Config {
            server_id: SshId::Standard(Cow::Borrowed(concat!(
                "SSH-2.0-KohakuRiver_",
                env!("CARGO_PKG_VERSION")
            ))),
            methods,
            // Keys cannot be guessed: a delay would only slow down clients that hold several.
            auth_rejection_time: Duration::ZERO,
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![host_key],
            window_size: WINDOW,
            maximum_packet_size: MAX_PACKET,
            channel_buffer_size: CHANNEL_BUFFER,
            event_buffer_size: 16,
            preferred: Preferred {
                cipher: Cow::Borrowed(CIPHERS),
                ..Preferred::DEFAULT
            },
            max_auth_attempts: MAX_AUTH_ATTEMPTS,
            inactivity_timeout: None,
            keepalive_interval: Some(Duration::from_secs(30)),
            keepalive_max: 4,
            nodelay: true,
            ..Config::default()
        };
        Ok(Self {
            config: Arc::new(config),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            config_dir: config_dir.to_owned(),
            env,
            sftp_server,
            children,
        })
    }

    /// Serves one connection until it ends. A panic inside ends that connection alone.
    pub async fn serve<S>(self: Arc<Self>, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(_slot) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "SSH connection refused: too many");
            return;
        };
        let logged_in = Arc::new(AtomicBool::new(false));
        let gate = Gate::new(stream, LOGIN_DEADLINE, Arc::clone(&logged_in));
        let closed = CancellationToken::new();
        // Ends the channels' tasks however this function is left.
        let _closing = closed.clone().drop_guard();
        let config = Arc::clone(&self.config);
        let handler = Connection::new(self, peer, logged_in, closed);
        let result = match russh::server::run_stream(config, gate, handler).await {
            Ok(session) => session.await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => tracing::debug!(?peer, "SSH connection closed"),
            Err(error) => tracing::debug!(?peer, %error, "SSH connection ended"),
        }
    }
}
