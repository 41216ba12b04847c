//! An SSH server that only jumps: `ssh -J you@host:8002 root@<name or id>`.
//!
//! Every forwarded connection is relayed by a task of its own, and may be sent as much as it has
//! passed on: one that is stuck keeps no other of the same SSH connection waiting. All of one client
//! is done by one thread (see [`thread`]), but what asks the store: that is the host's own runtime's.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_model::TaskId;
use kohakuriver_net::{DetachedSocket, Pieces, Quiet, Socket, copy};
use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Favored, Handler, Msg, PublicKeyOffer, Session,
    VerifiedPublicKey,
};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf,
    MethodKind, MethodSet, Preferred, SshId, cipher, kex,
};
use tokio::io::{AsyncWriteExt, BufReader, split};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio::try_join;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use super::{person, thread};
use crate::access::{Caller, Person, Who};
use crate::enter::{EnterError, Entered, enter};
use crate::host::App;
use crate::instances::{self, InstanceError};
use crate::ssh_keys::{self, KeyError};
use crate::streams::InstanceStream;

/// Connections one SSH client may have open through the gateway.
const MAX_CHANNELS: usize = 64;

/// What a jump may be sent before any of it is passed on: 40 MB/s at 50 ms.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Messages on the way to a jump's relay. A full queue would hold up the connection, but the
/// window is full first unless a client sends less than 32 bytes at a time.
const CHANNEL_BUFFER: usize = WINDOW as usize / 32;
/// Granted at once, so that not every packet is answered with one.
const GRANT: usize = WINDOW as usize / 2;

/// How long the instance may take for what has come before its client went away.
const LAST_BYTES_LIMIT: Duration = Duration::from_secs(5);

/// A few packets of the usual size.
const READ_AHEAD: usize = 128 * 1024;

/// Offered alone to an OpenSSH that has one of them: its own order decides and puts
/// chacha20-poly1305 first, which would cost twice the processor time. What is inside is encrypted
/// once more anyway.
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

/// For clients older than curve25519.
const MORE_KEX: &[kex::Name] =
    &[kex::ECDH_SHA2_NISTP256, kex::ECDH_SHA2_NISTP384, kex::ECDH_SHA2_NISTP521];

/// Offered alone to whom knows it: clients that order their algorithms without a look at the keys
/// they have stored (Go's do) would meet the ECDSA key where they expect this one.
const FAVORED_KEYS: &[Algorithm] = &[Algorithm::Ed25519];

/// How long the client's offer is waited for, on which ours depends: more than a round trip.
const OFFER_WAIT: Duration = Duration::from_millis(700);

/// The server's settings for the two kinds of clients.
#[derive(Debug)]
pub struct Configs {
    fast: Arc<Config>,
    compatible: Arc<Config>,
}

pub fn configs(data_dir: &Path) -> Result<Configs, KeyError> {
    let key = ssh_keys::load_or_create(&data_dir.join("ssh_host_ed25519_key"))?;
    let keys = kohakuriver_wire::host_keys(key);
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
        window_size: WINDOW,
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

pub async fn serve(app: Arc<App>, stream: TcpStream, address: IpAddr, configs: &Configs) {
    let config = Arc::clone(match is_openssh(&stream).await {
        Ok(true) => &configs.fast,
        Ok(false) | Err(_) => &configs.compatible,
    });
    let main = Handle::current();
    let served = match Socket::from(stream).detach() {
        Ok(stream) => thread::run(move || serve_here(app, main, stream, address, config)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(%error, "an SSH connection was dropped");
    }
}

/// In the thread and runtime that are this client's alone.
async fn serve_here(
    app: Arc<App>,
    main: Handle,
    stream: DetachedSocket,
    address: IpAddr,
    config: Arc<Config>,
) {
    let stream = match stream.quiet() {
        Ok(stream) => stream.gathering(),
        Err(error) => return tracing::warn!(%error, "an SSH connection was dropped"),
    };
    let (caller, relays) = (Caller::unnamed(&app, Some(address)), TaskTracker::new());
    let slots = Arc::new(Semaphore::new(MAX_CHANNELS));
    let jump = Jump { app, main, caller, only: None, slots, relays: relays.clone() };
    // The library asks for four bytes, then for the rest of each packet.
    let stream = BufReader::with_capacity(READ_AHEAD, stream);
    match russh::server::run_stream(config, stream, jump).await {
        Ok(session) => {
            if let Err(error) = session.await {
                tracing::debug!(%error, "a jump connection ended");
            }
        }
        Err(error) => tracing::debug!(%error, "an SSH handshake failed"),
    }
    relays.close();
    // What has come is passed on, if whom it is for still takes it.
    let _ = timeout(LAST_BYTES_LIMIT, relays.wait()).await;
}

/// Looks at the name the client says first, without taking it. One whose first packet is shorter
/// than that is not OpenSSH, which sends its line whole.
async fn is_openssh(stream: &TcpStream) -> io::Result<bool> {
    const NAME: &[u8] = b"SSH-2.0-OpenSSH_";
    let mut first = [0; NAME.len()];
    let count = stream.peek(&mut first).await?;
    Ok(&first[..count] == NAME)
}

/// One client's connection.
struct Jump {
    app: Arc<App>,
    /// The runtime that all of the host shares.
    main: Handle,
    /// Nobody until a key has said who it is.
    caller: Caller,
    /// The one instance that the certificate they came by is for; `None`: any they may enter.
    only: Option<TaskId>,
    /// Open jumps, not all there ever were: one connection may live for days.
    slots: Arc<Semaphore>,
    relays: TaskTracker,
}

impl Jump {
    async fn owner_of(&self, key: &russh::keys::PublicKey) -> Option<Person> {
        let (app, key) = (self.app.clone(), key.clone());
        let asked = self.main.spawn(async move { person::owner_of(&app, &key).await });
        asked.await.ok().flatten()
    }

    async fn holder_of(&self, certificate: &Certificate) -> Option<(Person, TaskId)> {
        let (app, certificate) = (self.app.clone(), certificate.clone());
        let asked = self.main.spawn(async move { person::holder_of(&app, &certificate).await });
        asked.await.ok().flatten()
    }

    fn log_in(&mut self, person: Person) {
        tracing::info!(user = person.username, proof = ?person.proof, "logged in at the SSH gateway");
        self.caller = Caller::new(Who::Somebody(Arc::new(person)), self.caller.address);
    }
}

/// Opens the way to what a jump is to. A certificate says nothing about other instances than its
/// own, not even whether there are any.
async fn enter_by_jump(
    app: Arc<App>,
    caller: Caller,
    only: Option<TaskId>,
    text: String,
) -> Result<Entered, ()> {
    let entered = async {
        let text = match only {
            None => text.clone(),
            Some(only) => match instances::find_to_enter(&app, &caller, &text).await? {
                id if id == only => id.to_string(),
                _ => return Err(InstanceError::Unknown(text.clone()).into()),
            },
        };
        enter(&app, &caller, &text, StreamTarget::Ssh).await
    };
    entered.await.map_err(|error: EnterError| {
        tracing::info!(target_name = text, %error, "a jump was refused");
    })
}

/// Carries bytes both ways until both sides are done. The client may send as much as was passed on.
async fn carry(
    mut from_client: ChannelReadHalf,
    to_client: &ChannelWriteHalf<Msg>,
    handle: &russh::server::Handle,
    instance: InstanceStream,
) -> io::Result<()> {
    let instance = instance.try_map(|stream| match stream {
        // Known to the runtime that opened it.
        Either::Right(socket) => socket.moved().map(Either::Right),
        Either::Left(connection) => Ok(Either::Left(connection)),
    })?;
    let (mut from_instance, mut to_instance) = split(instance);
    let inward = async {
        let mut pieces = Pieces::default();
        let mut owed = 0;
        let mut has_ended = false;
        while !has_ended || !pieces.is_empty() {
            tokio::select! {
                // All that has come is passed on together.
                biased;
                message = from_client.wait(), if !has_ended => match message {
                    Some(ChannelMsg::Data { data }) => pieces.push(data),
                    Some(ChannelMsg::Eof) | None => has_ended = true,
                    Some(_) => {}
                },
                written = pieces.write_some(&mut to_instance), if !pieces.is_empty() => {
                    owed += written?;
                    if owed >= GRANT {
                        handle.grant_window(to_client.id(), u32::try_from(owed).unwrap_or(u32::MAX));
                        owed = 0;
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

    /// Enough where nobody logs in: the instance's own SSH server asks for a key.
    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(if self.caller.who == Who::Nobody { Auth::reject() } else { Auth::Accept })
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        if self.caller.who != Who::Nobody {
            return Ok(Auth::Accept);
        }
        // SHA-1 signatures can be forged.
        let forgeable = matches!(offer.algorithm, Algorithm::Rsa { hash: None });
        let known = !forgeable
            && match offer.certificate {
                Some(certificate) => self.holder_of(certificate).await.is_some(),
                None => self.owner_of(offer.public_key).await.is_some(),
            };
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_openssh_certificate(
        &mut self,
        _user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        if self.caller.who != Who::Nobody {
            return Ok(Auth::Accept);
        }
        let Some((person, instance)) = self.holder_of(certificate).await else {
            return Ok(Auth::reject());
        };
        self.only = Some(instance);
        self.log_in(person);
        Ok(Auth::Accept)
    }

    /// Whose key it is counts, whatever name is written before the `@`.
    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if self.caller.who != Who::Nobody {
            return Ok(Auth::Accept);
        }
        let Some(person) = self.owner_of(key.public_key).await else {
            return Ok(Auth::reject());
        };
        self.log_in(person);
        Ok(Auth::Accept)
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
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (app, caller, only) = (self.app.clone(), self.caller.clone(), self.only);
        let text = host_to_connect.to_ascii_lowercase();
        let (main, handle) = (self.main.clone(), session.handle());
        let relaying = self.relays.token();
        self.app.tasks.spawn(async move {
            let (_slot, _relaying) = (slot, relaying);
            let entering = main.spawn(enter_by_jump(app, caller, only, text));
            match entering.await {
                Ok(Ok(Entered { stream, guard })) => {
                    reply.accept().await;
                    let (reader, writer) = channel.split();
                    let carried = guard.during(carry(reader, &writer, &handle, stream)).await;
                    if let Some(Err(error)) = carried {
                        tracing::debug!(%error, "a jump ended early");
                    }
                    let _ = writer.close().await;
                }
                Ok(Err(())) | Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    /// A session asks for a shell here. Say what this port is for, and end.
    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        drop(channel);
        Ok(())
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        explain(channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        explain(channel, session)
    }
}

fn explain(channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
    const TEXT: &[u8] = b"This is KohakuRiver's SSH gateway; it has no shell of its own.\r\n\
        To get into a VPS: ssh -J <this host>:8002 root@<name or id>\r\n";
    session.channel_success(channel)?;
    session.extended_data(channel, 1, TEXT.to_vec())?;
    session.exit_status_request(channel, 1)?;
    session.eof(channel)?;
    session.close(channel)
}
