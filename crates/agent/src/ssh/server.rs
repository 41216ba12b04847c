use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kohakuriver_net::{DetachedSocket, IntoLazyWrite, Socket};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{getegid, geteuid};
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Config, Favored};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, kex};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::auth::{self, Entry};
use super::gate::Gate;
use super::handler::Connection;
use super::inline_executor::{self, InlineExecutor};
use super::window;
use crate::config::HOST_KEY_FILE;
use crate::error::AgentError;
use crate::passwd::User;
use crate::process::Children;
use crate::sftp::MAX_HANDLES;
use crate::sys;

/// People and their tools open a handful; beyond this it is a runaway loop.
const MAX_CONNECTIONS: usize = 128;
/// From the first byte to a successful login.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// Clients offer every key they hold, and the library counts each offer that is turned down as an attempt.
const MAX_AUTH_ATTEMPTS: usize = 64;
/// How often connections are checked for revoked credentials.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Messages between the library and a channel's task, which always takes them at once (see [`super::flow`]).
const CHANNEL_BUFFER: usize = 128;
/// The largest data that OpenSSH itself uses.
const MAX_PACKET: u32 = 32 * 1024;

/// How long a client may keep its name to itself before it is taken for one of the slower kind.
const NAME_DEADLINE: Duration = Duration::from_secs(1);
const MAX_NAME: usize = 255;
/// Several packets of the usual size.
const READ_AHEAD: usize = 128 * 1024;

const NAME: &str = concat!("SSH-2.0-KohakuRiver_", env!("CARGO_PKG_VERSION"));
/// OpenSSH tells only its like that it reads no more of a program (`ssh x yes | head -1`), and knows them by name.
const NAME_FOR_OPENSSH: &str =
    concat!("SSH-2.0-OpenSSH_compatible_KohakuRiver_", env!("CARGO_PKG_VERSION"));

/// Offered alone to an OpenSSH that has one of them: its own order decides and puts chacha20-poly1305 first, which would
/// halve the throughput of nearly everyone. GCM is what the CPU's AES instructions carry.
const FAST_CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// For all others, some of which have no GCM or are forbidden it.
const ALL_CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// Offered alone to whom knows it: clients that order their algorithms without a look at the keys they have stored
/// (Go's do) would meet the ECDSA key where they expect this one.
const FAVORED_KEYS: &[Algorithm] = &[Algorithm::Ed25519];

/// For clients older than curve25519.
const MORE_KEX: &[kex::Name] =
    &[kex::ECDH_SHA2_NISTP256, kex::ECDH_SHA2_NISTP384, kex::ECDH_SHA2_NISTP521];

/// How long the client's offer is waited for, on which ours depends: more than a round trip to anywhere.
const OFFER_WAIT: Duration = Duration::from_millis(700);

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

/// The state that all SSH connections of the instance share.
#[derive(Debug)]
pub(crate) struct SshServer {
    fast: Arc<Config>,
    compatible: Arc<Config>,
    connections: Arc<Semaphore>,
    /// For SFTP sessions in this process.
    in_place: Arc<Semaphore>,
    pub config_dir: PathBuf,
    pub env: BTreeMap<OsString, OsString>,
    /// The program and arguments that serve SFTP on standard input and output.
    pub sftp_server: Vec<OsString>,
    pub children: Arc<Children>,
}

impl SshServer {
    pub fn new(
        config_dir: &Path,
        env: BTreeMap<OsString, OsString>,
        sftp_server: Vec<OsString>,
        children: Arc<Children>,
    ) -> Result<Self, AgentError> {
        let path = config_dir.join(HOST_KEY_FILE);
        let host_key = russh::keys::load_secret_key(&path, None)
            .map_err(|source| AgentError::HostKey { path, source })?;
        let host_keys = kohakuriver_agent_protocol::host_keys(host_key);
        let fast = settings(NAME_FOR_OPENSSH, host_keys.clone(), FAST_CIPHERS);
        let compatible = settings(NAME, host_keys, &[]);
        Ok(Self {
            fast: Arc::new(fast),
            compatible: Arc::new(compatible),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            in_place: Arc::new(Semaphore::new(sessions_in_place())),
            config_dir: config_dir.to_owned(),
            env,
            sftp_server,
            children,
        })
    }

    /// Whether a program of this user would run with the rights that this process has.
    pub fn is_itself(&self, user: &User) -> bool {
        user.uid == geteuid().as_raw() && user.gid == getegid().as_raw()
    }

    /// Serves one connection, by a thread of its own. A panic inside ends that connection alone.
    pub fn serve(self: Arc<Self>, stream: Socket, peer: Peer) {
        let Ok(slot) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "SSH connection refused: too many");
            return;
        };
        let connection = |stream: DetachedSocket| {
            let room = Arc::clone(&self.in_place);
            let slot = Slot(Some(slot));
            inline_executor::spawn(
                move |in_place| self.connection(stream, peer, in_place),
                room,
                slot,
            )
        };
        if let Err(error) = stream.detach().and_then(connection) {
            tracing::warn!(%error, "SSH connection refused: no thread for it");
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: DetachedSocket,
        peer: Peer,
        in_place: InlineExecutor,
    ) {
        let mut stream = match stream.into_lazy_write() {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "SSH connection not served"),
        };
        let logged_in = Arc::new(AtomicBool::new(false));
        let name = client_name(&mut stream).await;
        // The library reads each packet's length by itself.
        let stream = BufReader::with_capacity(READ_AHEAD, stream.coalescing());
        let (entry, cut) = (Arc::new(OnceLock::new()), CancellationToken::new());
        let gate = Gate::new(stream, name.clone(), LOGIN_DEADLINE, Arc::clone(&logged_in));
        // Whoever came by the host is cut by the host.
        let past_host = matches!(peer, Peer::Tcp { .. });
        let gate = if past_host { gate.cut_by(cut.clone()) } else { gate };
        let closed = CancellationToken::new();
        // Ends the channels' tasks however this function is left.
        let _closing = closed.clone().drop_guard();
        let is_openssh = name.starts_with(b"SSH-2.0-OpenSSH_");
        let config = Arc::clone(if is_openssh { &self.fast } else { &self.compatible });
        if past_host {
            // It ends with the connection's runtime.
            tokio::spawn(cut_once_revoked(self.config_dir.clone(), Arc::clone(&entry), peer, cut));
        }
        let handler = Connection::new(self, peer, logged_in, entry, closed, in_place);
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

/// Disconnects a connection once its credential is revoked.
async fn cut_once_revoked(
    config_dir: PathBuf,
    entry: Arc<OnceLock<Entry>>,
    peer: Peer,
    cut: CancellationToken,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if entry.get().is_some_and(|entry| !auth::still_admits(&config_dir, entry)) {
            break;
        }
    }
    tracing::info!(?peer, "an SSH connection is cut: who it is of may not be here any more");
    cut.cancel();
}

/// A slot of the connection limit. After the last connection the agent shrinks to its idle memory again, because there
/// is one agent per instance.
struct Slot(Option<OwnedSemaphorePermit>);

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(permit) = self.0.take() else { return };
        let all = Arc::clone(permit.semaphore());
        drop(permit);
        if all.available_permits() == MAX_CONNECTIONS {
            sys::return_free_memory();
        }
    }
}

/// Half of our open files may be those of SFTP clients, and half of our connections may be stuck in their files; beyond
/// that sessions are processes with limits of their own.
fn sessions_in_place() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    (usize::try_from(limit).unwrap_or(usize::MAX) / 2 / MAX_HANDLES).min(MAX_CONNECTIONS / 2)
}

fn settings(
    name: &'static str,
    host_keys: Vec<PrivateKey>,
    fast_ciphers: &'static [cipher::Name],
) -> Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    let sha1 = Algorithm::Rsa { hash: None };
    let keys = Preferred::DEFAULT.key.iter().filter(|key| **key != sha1);
    Config {
        server_id: SshId::Standard(Cow::Borrowed(name)),
        methods,
        // Keys cannot be guessed: a delay would only slow down clients that hold several.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys,
        window_size: window::INITIAL,
        manual_window: true,
        maximum_packet_size: MAX_PACKET,
        channel_buffer_size: CHANNEL_BUFFER,
        event_buffer_size: 16,
        preferred: Preferred {
            cipher: Cow::Borrowed(ALL_CIPHERS),
            key: keys.cloned().collect(),
            kex: Preferred::DEFAULT.kex.iter().chain(MORE_KEX).copied().collect(),
            ..Preferred::DEFAULT
        },
        favored: Some(Favored {
            cipher: Cow::Borrowed(fast_ciphers),
            key: Cow::Borrowed(FAVORED_KEYS),
            wait: OFFER_WAIT,
        }),
        max_auth_attempts: MAX_AUTH_ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 4,
        nodelay: true,
        ..Config::default()
    }
}

/// Takes the client's identification line, or as much of it as comes in time.
async fn client_name<S: AsyncRead + Unpin>(stream: &mut S) -> Bytes {
    let mut name = BytesMut::with_capacity(MAX_NAME);
    let reading = async {
        while name.len() < MAX_NAME && !name.ends_with(b"\n") {
            match stream.read_u8().await {
                Ok(byte) => name.put_u8(byte),
                Err(_) => break,
            }
        }
    };
    let _ = timeout(NAME_DEADLINE, reading).await;
    name.freeze()
}
