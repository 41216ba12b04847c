use std::collections::HashMap;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use russh::keys::ssh_key::Certificate;
use russh::keys::{HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::auth::Entry;
use super::exec::{ClientEnv, Program};
use super::inline_executor::InlineExecutor;
use super::listener::Listeners;
use super::server::{Peer, SshServer};
use super::session::{self, Start};
use super::slots::Slots;
use super::{auth, forward};
use crate::passwd::User;
use crate::process;
use crate::pty::{PtyRequest, window_size};

const MAX_TERM: usize = 128;

/// An SSH connection: answers requests in order and hands the work to one task per channel.
pub(super) struct Connection {
    server: Arc<SshServer>,
    peer: Peer,
    logged_in: Arc<AtomicBool>,
    entry: Arc<OnceLock<Entry>>,
    closed: CancellationToken,
    in_place: Arc<InlineExecutor>,
    user: Option<Arc<User>>,
    slots: Slots,
    listeners: Listeners,
    sessions: HashMap<ChannelId, Pending>,
}

/// A session channel that runs nothing yet.
struct Pending {
    start: mpsc::Sender<Option<Start>>,
    pty: Option<PtyRequest>,
    env: ClientEnv,
    agent: Option<PathBuf>,
}

impl Connection {
    pub fn new(
        server: Arc<SshServer>,
        peer: Peer,
        logged_in: Arc<AtomicBool>,
        entry: Arc<OnceLock<Entry>>,
        closed: CancellationToken,
        in_place: InlineExecutor,
    ) -> Self {
        let slots = Slots::default();
        let children = Arc::clone(&server.children);
        let listeners = Listeners::new(children, slots.clone(), closed.clone());
        Self {
            server,
            peer,
            logged_in,
            entry,
            closed,
            in_place: Arc::new(in_place),
            user: None,
            slots,
            listeners,
            sessions: HashMap::new(),
        }
    }

    fn authorize(
        &self,
        user: &str,
        key: &PublicKey,
        algorithm: &russh::keys::Algorithm,
    ) -> Option<(User, Entry)> {
        auth::authorize(&self.server.config_dir, user, key, algorithm)
    }

    fn authorize_certificate(
        &self,
        user: &str,
        certificate: &Certificate,
    ) -> Option<(User, Entry)> {
        auth::authorize_certificate(&self.server.config_dir, user, certificate)
    }

    fn admit(&mut self, (user, entry): (User, Entry)) {
        self.user = Some(Arc::new(user));
        // A connection logs in once.
        let _ = self.entry.set(entry);
        self.logged_in.store(true, Ordering::Relaxed);
    }

    /// Starts a program on a channel that runs none, and answers the request.
    fn start(
        &mut self,
        channel: ChannelId,
        program: Option<Program>,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(user) = self.user.clone() else {
            return session.channel_failure(channel);
        };
        let Some(program) = program else {
            // The channel's task saw the request too and waits for what to make of it.
            if let Some(pending) = self.sessions.get(&channel) {
                let _ = pending.start.try_send(None);
            }
            return session.channel_failure(channel);
        };
        let Some(pending) = self.sessions.remove(&channel) else {
            return session.channel_failure(channel);
        };
        let Pending { start: starts, pty, env, agent } = pending;
        let start = Start { user, program, pty, env, agent, peer: self.peer };
        if starts.try_send(Some(start)).is_err() {
            return session.channel_failure(channel);
        }
        session.channel_success(channel)
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> impl Future<Output = Result<Auth, Self::Error>> + Send {
        let found = match offer.certificate {
            // What it is signed with is not told again below.
            Some(_) if auth::is_forgeable(offer.algorithm) => None,
            Some(certificate) => self.authorize_certificate(user, certificate),
            None => self.authorize(user, offer.public_key, offer.algorithm),
        };
        ready(Ok(found.map_or_else(Auth::reject, |_| Auth::Accept)))
    }

    fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> impl Future<Output = Result<Auth, Self::Error>> + Send {
        let Some(found) = self.authorize_certificate(user, certificate) else {
            return ready(Ok(Auth::reject()));
        };
        let (holder, serial) = (certificate.key_id(), certificate.serial());
        tracing::info!(user, ?holder, serial, peer = ?self.peer, "SSH login by certificate");
        self.admit(found);
        ready(Ok(Auth::Accept))
    }

    fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> impl Future<Output = Result<Auth, Self::Error>> + Send {
        let fingerprint = key.public_key.fingerprint(HashAlg::Sha256);
        let Some(found) = self.authorize(user, key.public_key, key.algorithm) else {
            tracing::info!(user, %fingerprint, "SSH login refused");
            return ready(Ok(Auth::reject()));
        };
        tracing::info!(user, %fingerprint, peer = ?self.peer, "SSH login");
        self.admit(found);
        ready(Ok(Auth::Accept))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(slot) = self.slots.take() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        // Room for a few refused requests before the one that starts something.
        let (start, starts) = mpsc::channel(16);
        let pending = Pending { start, pty: None, env: ClientEnv::default(), agent: None };
        self.sessions.insert(channel.id(), pending);
        let (server, in_place) = (Arc::clone(&self.server), Arc::clone(&self.in_place));
        let (handle, closed) = (session.handle(), self.closed.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = session::run(server, in_place, channel, handle, starts, slot) => {}
            }
        });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        let Some(slot) = self.slots.take() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (host, closed) = (host.to_owned(), self.closed.clone());
        let window = slot.window(channel.id(), session.handle());
        tokio::spawn(async move {
            forward::run_tcp(channel, host, port, reply, window, closed).await;
            drop(slot);
        });
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (Some(slot), Some(user)) = (self.slots.take(), self.user.clone()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let connected =
            process::connect_as(&self.server.children, user.identity(), Path::new(path));
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(path, %error, "forward not connected");
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
                return Ok(());
            }
        };
        reply.accept().await;
        let window = slot.window(channel.id(), session.handle());
        let closed = self.closed.clone();
        tokio::spawn(async move {
            let (from_target, to_target) = stream.into_split();
            tokio::select! {
                () = closed.cancelled() => {}
                () = forward::relay(channel, from_target, to_target, window) => {}
            }
            drop(slot);
        });
        Ok(())
    }

    fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        let Some(user) = &self.user else {
            return ready(Ok(false));
        };
        let bound = self.listeners.listen_tcp(user, &session.handle(), address, *port);
        ready(Ok(match bound {
            Ok(bound) => {
                *port = bound;
                true
            }
            Err(error) => {
                tracing::debug!(address, port, %error, "remote forward refused");
                false
            }
        }))
    }

    fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        ready(Ok(self.listeners.cancel_tcp(address, port)))
    }

    fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        let Some(user) = &self.user else {
            return ready(Ok(false));
        };
        let listening = self.listeners.listen_socket(user, &session.handle(), path);
        if let Err(error) = &listening {
            tracing::debug!(path, %error, "remote forward refused");
        }
        ready(Ok(listening.is_ok()))
    }

    fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        ready(Ok(self.listeners.cancel_socket(path)))
    }

    fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        let (Some(pending), Some(user)) = (self.sessions.get_mut(&channel), &self.user) else {
            return ready(Ok(false));
        };
        ready(Ok(match self.listeners.agent_socket(user, &session.handle()) {
            Ok(path) => {
                pending.agent = Some(path);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "key agent not forwarded");
                false
            }
        }))
    }

    fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.sessions.remove(&channel);
        ready(Ok(()))
    }

    fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let answer = match self.sessions.get_mut(&channel) {
            Some(pending) if term.len() <= MAX_TERM => {
                pending.pty = Some(PtyRequest {
                    term: term.to_owned(),
                    size: window_size(columns, rows, width, height),
                    modes: modes.to_vec(),
                });
                session.channel_success(channel)
            }
            Some(_) | None => session.channel_failure(channel),
        };
        ready(answer)
    }

    fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        // Once a program runs, its channel's task sees the request itself.
        if let Some(pty) = self.sessions.get_mut(&channel).and_then(|pending| pending.pty.as_mut())
        {
            pty.size = window_size(columns, rows, width, height);
        }
        ready(Ok(()))
    }

    fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let pending = self.sessions.get_mut(&channel);
        let taken = pending.is_some_and(|pending| pending.env.set(name, value));
        ready(if taken {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        })
    }

    fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(self.start(channel, Some(Program::Shell), session))
    }

    fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let program = Program::Command(command.to_vec());
        ready(self.start(channel, Some(program), session))
    }

    fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let program = (name == "sftp").then_some(Program::Sftp);
        ready(self.start(channel, program, session))
    }

    fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(session.channel_failure(channel))
    }
}
