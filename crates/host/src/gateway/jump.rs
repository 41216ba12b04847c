//! An SSH server that only jumps: `ssh -J you@host:8002 root@<name or id>`.
//!
//! Every forwarded connection is relayed by a task of its own with its own window, so a stalled one
//! does not delay the others of the same SSH connection. All work of one client runs on one thread
//! (see [`thread`]), except store queries, which run on the host's runtime.
//!
//! A connection is in the [registry](crate::sessions::registry) from its login on, so it opens
//! nothing new after its key or account is revoked.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_model::{InstanceId, Role};
use kohakuriver_net::{BufList, DetachedSocket, IntoLazyWrite, Socket, copy};
use kohakuriver_runner_link::protocol::StreamTarget;
use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Favored, Handler, Msg, PublicKeyOffer, Session,
    VerifiedPublicKey,
};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf,
    Disconnect, MethodKind, MethodSet, Preferred, SshId, cipher, kex,
};
use tokio::io::{AsyncWriteExt, BufReader, split};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio::try_join;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use super::window::{FIRST_WINDOW, MAX_WINDOW, Window};
use super::{Client, identity, thread};
use crate::access::{Account, Caller, Principal, still_has_role};
use crate::host::App;
use crate::instances::{self, InstanceError};
use crate::limits::Holder;
use crate::sessions::open::{OpenSession, OpenSessionError, open_session};
use crate::sessions::registry::{Guard, Right};
use crate::sessions::streams::InstanceStream;
use crate::ssh_keys::{self, KeyError};

/// The bound on open jumps of one SSH connection.
const MAX_CHANNELS: usize = 64;

/// The bound on concurrent shells of one connection. Each gets a text and ends.
const MAX_SHELLS: usize = 4;

/// The queue of messages to a jump's relay. A full queue would block the connection, but the window
/// is full first unless a client sends less than 32 bytes at a time.
const CHANNEL_BUFFER: usize = MAX_WINDOW as usize / 32;

/// Failure reasons of RFC 4254, section 5.1.
const CONNECT_FAILED: u32 = 2;
const RESOURCE_SHORTAGE: u32 = 4;
/// The longest text of a refusal, in characters.
const LONGEST_REASON: usize = 400;

/// How long the instance may take to receive the client's last bytes after the client has left.
const LAST_BYTES_LIMIT: Duration = Duration::from_secs(5);

/// A few packets of the usual size.
const READ_AHEAD: usize = 128 * 1024;

/// Offered alone to an OpenSSH that has one of them: its own order would choose chacha20-poly1305,
/// which costs twice the processor time. The content is encrypted a second time anyway.
const FAST_CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// Offered to all others, some of which lack GCM or must not use it.
const ALL_CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// For clients older than curve25519.
const MORE_KEX: &[kex::Name] =
    &[kex::ECDH_SHA2_NISTP256, kex::ECDH_SHA2_NISTP384, kex::ECDH_SHA2_NISTP521];

/// Offered alone to clients that know it: those that order their algorithms without regard to the
/// keys they have stored (such as Go's) would get the ECDSA key where they expect this one.
const FAVORED_KEYS: &[Algorithm] = &[Algorithm::Ed25519];

/// How long to wait for the client's version, which decides our offer: more than a round trip.
const OFFER_WAIT: Duration = Duration::from_millis(700);

/// The server's settings for the two kinds of clients.
#[derive(Debug)]
pub struct Configs {
    fast: Arc<Config>,
    compatible: Arc<Config>,
}

pub fn configs(data_dir: &Path) -> Result<Configs, KeyError> {
    let key = ssh_keys::load_or_create(&data_dir.join("ssh_host_ed25519_key"))?;
    let keys = kohakuriver_agent_protocol::host_keys(key);
    Ok(Configs {
        fast: Arc::new(config(keys.clone(), FAST_CIPHERS)),
        compatible: Arc::new(config(keys, &[])),
    })
}

fn config(keys: Vec<PrivateKey>, fast_ciphers: &'static [cipher::Name]) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-KohakuRiver")),
        methods: MethodSet::from(&[MethodKind::None, MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_secs(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys,
        preferred: Preferred {
            cipher: Cow::Borrowed(ALL_CIPHERS),
            kex: Preferred::DEFAULT.kex.iter().chain(MORE_KEX).copied().collect(),
            ..Preferred::DEFAULT
        },
        favored: Some(Favored {
            cipher: Cow::Borrowed(fast_ciphers),
            key: Cow::Borrowed(FAVORED_KEYS),
            wait: OFFER_WAIT,
        }),
        window_size: FIRST_WINDOW,
        manual_window: true,
        channel_buffer_size: CHANNEL_BUFFER,
        maximum_packet_size: 65535,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 3,
        nodelay: true,
        ..Config::default()
    }
}

impl Configs {
    /// Returns the settings for a client that has sent its version.
    pub async fn of(&self, stream: &TcpStream) -> Arc<Config> {
        match is_openssh(stream).await {
            Ok(true) => self.fast.clone(),
            Ok(false) | Err(_) => self.compatible.clone(),
        }
    }

    /// Returns the settings for a client that waits for the server's version.
    pub fn of_silent(&self) -> Arc<Config> {
        self.compatible.clone()
    }
}

pub async fn serve(app: Arc<App>, stream: TcpStream, client: Client, config: Arc<Config>) {
    let main = Handle::current();
    let served = match Socket::from(stream).detach() {
        Ok(stream) => thread::run(move || serve_here(app, main, stream, client, config)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(%error, "an SSH connection was dropped");
    }
}

/// Serves one client on its own thread and runtime.
async fn serve_here(
    app: Arc<App>,
    main: Handle,
    stream: DetachedSocket,
    client: Client,
    config: Arc<Config>,
) {
    let stream = match stream.into_lazy_write() {
        Ok(stream) => stream.coalescing(),
        Err(error) => return tracing::warn!(%error, "an SSH connection was dropped"),
    };
    let (caller, relays) =
        (Caller::unauthenticated(&app, Some(client.address)), TaskTracker::new());
    let slots = Arc::new(Semaphore::new(MAX_CHANNELS));
    let (logged_in, guard) = oneshot::channel();
    let jump = Jump {
        app,
        main,
        client,
        caller,
        only: None,
        slots,
        shells: 0,
        relays: relays.clone(),
        logged_in: Some(logged_in),
    };
    // The library reads four bytes, then the rest of each packet.
    let stream = BufReader::with_capacity(READ_AHEAD, stream);
    let session = async {
        match russh::server::run_stream(config, stream, jump).await {
            Ok(session) => {
                if let Err(error) = session.await {
                    tracing::debug!(%error, "a jump connection ended");
                }
            }
            Err(error) => tracing::debug!(%error, "an SSH handshake failed"),
        }
    };
    let revoked = async {
        match guard.await {
            Ok(guard) => guard.revoked().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = session => {}
        // Its relays have lost the same right and end by themselves.
        () = revoked => {}
    }
    relays.close();
    // Bytes that have arrived are passed on, if their receiver still accepts them.
    let _ = timeout(LAST_BYTES_LIMIT, relays.wait()).await;
}

/// Peeks at the client's version line. A client whose first packet is shorter than that is not
/// OpenSSH, which sends the line whole.
async fn is_openssh(stream: &TcpStream) -> io::Result<bool> {
    const NAME: &[u8] = b"SSH-2.0-OpenSSH_";
    let mut first = [0; NAME.len()];
    let count = stream.peek(&mut first).await?;
    Ok(&first[..count] == NAME)
}

/// The SSH session of one client.
struct Jump {
    app: Arc<App>,
    /// The host's shared runtime.
    main: Handle,
    client: Client,
    /// Anonymous until a key or certificate has identified the account.
    caller: Caller,
    /// The one instance that the client's certificate is for; `None`: any that the account may
    /// enter.
    only: Option<InstanceId>,
    /// Open jumps, not all there ever were: a connection may last for days.
    slots: Arc<Semaphore>,
    /// Shells that have been requested.
    shells: usize,
    relays: TaskTracker,
    /// Sends the guard that notices when the login is revoked.
    logged_in: Option<oneshot::Sender<Guard>>,
}

impl Jump {
    async fn owner_of(&self, key: &russh::keys::PublicKey) -> Option<Account> {
        let (app, key) = (self.app.clone(), key.clone());
        let asked = self.main.spawn(async move { identity::owner_of(&app, &key).await });
        asked.await.ok().flatten()
    }

    async fn holder_of(&self, certificate: &Certificate) -> Option<(Account, InstanceId)> {
        let (app, certificate) = (self.app.clone(), certificate.clone());
        let asked = self.main.spawn(async move { identity::holder_of(&app, &certificate).await });
        asked.await.ok().flatten()
    }

    /// Registers the connection, then checks the credential again, so that no change falls in
    /// between.
    async fn log_in(&mut self, account: Account) -> Auth {
        tracing::info!(user.id = account.id.0, user.name = account.username, credential = ?account.credential, "logged in at the SSH gateway");
        self.caller = Caller::new(Principal::Account(Arc::new(account)), self.caller.address);
        let right = Right::Ask { role: Role::Viewer, permission: None };
        let guard = self.app.sessions.register(&self.caller, right);
        let (app, caller) = (self.app.clone(), self.caller.clone());
        let asked =
            self.main.spawn(async move { still_has_role(&app, &caller, Role::Viewer).await });
        if !asked.await.unwrap_or(false) {
            self.caller = Caller::unauthenticated(&self.app, self.caller.address);
            return Auth::reject();
        }
        if let Some(logged_in) = self.logged_in.take() {
            let _ = logged_in.send(guard);
        }
        Auth::Accept
    }
}

/// Makes the refusal of a jump, as its client displays it.
fn refusal(code: u32, text: &str) -> ChannelOpenFailure {
    // The text contains the name that the client sent.
    let reason = text.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect();
    ChannelOpenFailure::Other { code, reason }
}

/// Opens the stream of a jump. A certificate reveals nothing about instances other than its own,
/// not even whether they exist.
async fn open_jump(
    app: Arc<App>,
    caller: Caller,
    only: Option<InstanceId>,
    text: String,
) -> Result<OpenSession, String> {
    let entered = async {
        let text = match only {
            None => text.clone(),
            Some(only) => match instances::find_to_enter(&app, &caller, &text).await {
                Ok(id) if id == only => id.to_string(),
                Ok(_) | Err(_) => return Err(InstanceError::Unknown(text.clone()).into()),
            },
        };
        open_session(&app, &caller, &text, StreamTarget::Ssh).await
    };
    entered.await.map_err(|error: OpenSessionError| {
        tracing::info!(target_name = text, %error, "a jump was refused");
        error.line()
    })
}

/// Copies bytes both ways until both sides are done. The client may send as much as was passed on.
async fn relay_jump(
    mut from_client: ChannelReadHalf,
    to_client: &ChannelWriteHalf<Msg>,
    handle: &russh::server::Handle,
    instance: InstanceStream,
    mut window: Window,
) -> io::Result<()> {
    let instance = instance.try_map(|stream| match stream {
        // The socket is registered with the runtime that opened it.
        Either::Right(socket) => socket.moved().map(Either::Right),
        Either::Left(connection) => Ok(Either::Left(connection)),
    })?;
    let (mut from_instance, mut to_instance) = split(instance);
    let inward = async {
        let mut pieces = BufList::default();
        let mut has_ended = false;
        while !has_ended || !pieces.is_empty() {
            tokio::select! {
                // Everything that has arrived is passed on together.
                biased;
                message = from_client.wait(), if !has_ended => match message {
                    Some(ChannelMsg::Data { data }) => pieces.push(data),
                    Some(ChannelMsg::Eof) | None => has_ended = true,
                    Some(_) => {}
                },
                written = pieces.write_some(&mut to_instance), if !pieces.is_empty() => {
                    if let Some(grant) = window.passed_on(written?) {
                        handle.grant_window(to_client.id(), grant);
                    }
                    if pieces.is_empty() {
                        to_instance.flush().await?;
                    }
                }
            }
        }
        to_instance.shutdown().await
    };
    let mut to_client = to_client.make_writer();
    try_join!(inward, copy(&mut from_instance, &mut to_client)).map(drop)
}

impl Handler for Jump {
    type Error = russh::Error;

    /// Enough with authentication off: the instance's own SSH server requires a key.
    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(if self.caller.principal == Principal::Anonymous {
            Auth::reject()
        } else {
            Auth::Accept
        })
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        if self.caller.principal != Principal::Anonymous {
            return Ok(Auth::Accept);
        }
        // SHA-1 signatures can be forged.
        let forgeable = matches!(offer.algorithm, Algorithm::Rsa { hash: None });
        let known = !forgeable
            && match offer.certificate {
                Some(certificate) => self.holder_of(certificate).await.is_some(),
                None => self.owner_of(offer.public_key).await.is_some(),
            };
        if known {
            self.client.login.key_offered();
        }
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        if let Err(full) = self.client.slot.know(Holder::of(&self.caller)) {
            session.disconnect(Disconnect::TooManyConnections, &super::too_many(full), "en")?;
            return Ok(());
        }
        self.client.login.done();
        Ok(())
    }

    async fn auth_openssh_certificate(
        &mut self,
        _user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        if self.caller.principal != Principal::Anonymous {
            return Ok(Auth::Accept);
        }
        let Some((account, instance)) = self.holder_of(certificate).await else {
            return Ok(Auth::reject());
        };
        self.only = Some(instance);
        Ok(self.log_in(account).await)
    }

    /// The key decides the account, whatever name is before the `@`.
    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if self.caller.principal != Principal::Anonymous {
            return Ok(Auth::Accept);
        }
        let Some(account) = self.owner_of(key.public_key).await else {
            return Ok(Auth::reject());
        };
        Ok(self.log_in(account).await)
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let text =
                format!("this SSH client has {MAX_CHANNELS} open jumps, the limit of a connection");
            reply.reject(refusal(RESOURCE_SHORTAGE, &text)).await;
            return Ok(());
        };
        let (app, caller, only) = (self.app.clone(), self.caller.clone(), self.only);
        let text = host_to_connect.to_ascii_lowercase();
        let (main, handle) = (self.main.clone(), session.handle());
        let relaying = self.relays.token();
        let window = Window::new(self.app.waiting.of(Holder::of(&self.caller)));
        self.app.tasks.spawn(async move {
            let (_slot, _relaying) = (slot, relaying);
            let entering = main.spawn(open_jump(app, caller, only, text));
            match entering.await {
                Ok(Ok(OpenSession { stream, guard })) => {
                    reply.accept().await;
                    let (reader, writer) = channel.split();
                    let carried =
                        guard.during(relay_jump(reader, &writer, &handle, stream, window)).await;
                    if let Some(Err(error)) = carried {
                        tracing::debug!(%error, "jump ended early");
                    }
                    let _ = writer.close().await;
                }
                Ok(Err(text)) => reply.reject(refusal(CONNECT_FAILED, &text)).await,
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    /// Accepts a session, so that a shell request can be answered with what this port is for.
    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.shells += 1;
        if self.shells > MAX_SHELLS {
            reply.reject(refusal(RESOURCE_SHORTAGE, "the gateway has no shell of its own")).await;
        } else {
            reply.accept().await;
        }
        drop(channel);
        Ok(())
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        explain(channel, session, self.app.config.ssh_port)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        explain(channel, session, self.app.config.ssh_port)
    }
}

fn explain(channel: ChannelId, session: &mut Session, port: u16) -> Result<(), russh::Error> {
    let text = format!(
        "This is KohakuRiver's SSH gateway; it has no shell of its own.\r\n\
         To get into a VPS: ssh -J <this host>:{port} root@<name or id>\r\n"
    );
    session.channel_success(channel)?;
    session.extended_data(channel, 1, text.into_bytes())?;
    session.exit_status_request(channel, 1)?;
    session.eof(channel)?;
    session.close(channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_a_refusal_is_one_short_line() {
        let ChannelOpenFailure::Other { code, reason } = refusal(2, "no \x1b[31m\r\nVPS") else {
            panic!("another failure");
        };
        assert_eq!((code, reason.as_str()), (2, "no [31mVPS"));
        assert!(refusal(2, &"x".repeat(99_999)).description().len() <= LONGEST_REASON);
    }
}
