//! An SSH server that only jumps: `ssh -J you@host:8002 root@<name or id>`.
//!
//! Every forwarded connection is relayed by a task of its own, and may be sent as much as it has
//! passed on: one that is stuck keeps no other of the same SSH connection waiting.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_model::TaskId;
use kohakuriver_net::relay;
use russh::keys::ssh_key::Certificate;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, PublicKeyOffer, Session,
    VerifiedPublicKey,
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, SshId, cipher,
};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::person;
use crate::access::{Caller, Person, Who};
use crate::enter::{Entered, enter};
use crate::host::App;
use crate::instances::{self, InstanceError};
use crate::ssh_keys::{self, KeyError};

/// Connections one SSH client may have open through the gateway.
const MAX_CHANNELS: usize = 64;

/// What a jump may be sent before any of it is passed on: 40 MB/s at 50 ms.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Messages on the way to a jump's relay. A full queue would hold up the connection, but the
/// window is full first unless a client sends less than 32 bytes at a time.
const CHANNEL_BUFFER: usize = WINDOW as usize / 32;
/// Granted at once, so that not every packet is answered with one.
const GRANT: u32 = WINDOW / 8;

/// A few packets of the usual size.
const READ_AHEAD: usize = 128 * 1024;

/// For OpenSSH, whose own order decides and puts chacha20-poly1305 first: offering it would cost
/// twice the processor time. Every OpenSSH since 2013 has GCM. What is inside is encrypted once
/// more anyway.
const FAST_CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// For all others, some of which have no GCM.
const ALL_CIPHERS: &[cipher::Name] =
    &[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::AES_256_CTR, cipher::CHACHA20_POLY1305];

/// The server's settings for the two kinds of clients.
#[derive(Debug)]
pub struct Configs {
    fast: Arc<Config>,
    compatible: Arc<Config>,
}

pub fn configs(data_dir: &Path) -> Result<Configs, KeyError> {
    let key = ssh_keys::load_or_create(&data_dir.join("ssh_host_ed25519_key"))?;
    Ok(Configs {
        fast: Arc::new(config(key.clone(), FAST_CIPHERS)),
        compatible: Arc::new(config(key, ALL_CIPHERS)),
    })
}

fn config(key: PrivateKey, ciphers: &'static [cipher::Name]) -> Config {
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-KohakuRiver")),
        methods: MethodSet::from(&[MethodKind::None, MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_secs(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        preferred: Preferred { cipher: Cow::Borrowed(ciphers), ..Preferred::DEFAULT },
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
    let caller = Caller::unnamed(&app, Some(address));
    let jump = Jump { app, caller, only: None, slots: Arc::new(Semaphore::new(MAX_CHANNELS)) };
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
    /// Nobody until a key has said who it is.
    caller: Caller,
    /// The one instance that the certificate they came by is for; `None`: any they may enter.
    only: Option<TaskId>,
    /// Open jumps, not all there ever were: one connection may live for days.
    slots: Arc<Semaphore>,
}

impl Jump {
    fn log_in(&mut self, person: Person) {
        tracing::info!(user = person.username, proof = ?person.proof, "logged in at the SSH gateway");
        self.caller = Caller::new(Who::Somebody(Arc::new(person)), self.caller.address);
    }
}

/// Finds what a jump is to. A certificate says nothing about other instances than its own, not
/// even whether there are any.
async fn destination(
    app: &App,
    caller: &Caller,
    only: Option<TaskId>,
    text: String,
) -> Result<String, InstanceError> {
    let Some(only) = only else { return Ok(text) };
    match instances::find(app, caller, &text).await? {
        id if id == only => Ok(id.to_string()),
        _ => Err(InstanceError::Unknown(text)),
    }
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
                Some(certificate) => person::holder_of(&self.app, certificate).await.is_some(),
                None => person::owner_of(&self.app, offer.public_key).await.is_some(),
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
        let Some((person, instance)) = person::holder_of(&self.app, certificate).await else {
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
        let Some(person) = person::owner_of(&self.app, key.public_key).await else {
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
        let handle = session.handle();
        self.app.tasks.spawn(async move {
            let _slot = slot;
            let entered = match destination(&app, &caller, only, text.clone()).await {
                Ok(text) => enter(&app, &caller, &text, StreamTarget::Ssh).await,
                Err(error) => Err(error.into()),
            };
            match entered {
                Ok(Entered { stream, guard }) => {
                    reply.accept().await;
                    let channel = Granting::new(channel, handle);
                    if let Some(Err(error)) = guard.during(relay(channel, stream)).await {
                        tracing::debug!(%error, "a jump ended early");
                    }
                }
                Err(error) => {
                    tracing::info!(target_name = text, %error, "a jump was refused");
                    reply.reject(ChannelOpenFailure::ConnectFailed).await;
                }
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

/// A jump's stream, whose client may send as much as has been read of it.
struct Granting {
    id: ChannelId,
    handle: Handle,
    stream: russh::ChannelStream<Msg>,
    owed: u32,
}

impl Granting {
    fn new(channel: Channel<Msg>, handle: Handle) -> Self {
        Self { id: channel.id(), handle, stream: channel.into_stream(), owed: 0 }
    }
}

impl AsyncRead for Granting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.owed = self.owed.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
        if self.owed >= GRANT {
            self.handle.grant_window(self.id, self.owed);
            self.owed = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Granting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
