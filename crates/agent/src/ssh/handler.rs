use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use russh::keys::{HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exec::{ClientEnv, Program};
use super::pty::{PtyRequest, window_size};
use super::server::{Peer, SshServer};
use super::session::{self, Start};
use super::window::{Budget, Window};
use super::{auth, forward};
use crate::passwd::User;

/// Editors open tens of forwards over one connection.
const MAX_CHANNELS: usize = 256;
const MAX_TERM: usize = 128;

/// One SSH connection: answers requests in order and hands the work to one task per channel.
pub(super) struct Connection {
    server: Arc<SshServer>,
    peer: Peer,
    budget: Arc<Budget>,
    logged_in: Arc<AtomicBool>,
    closed: CancellationToken,
    user: Option<Arc<User>>,
    channels: Arc<AtomicUsize>,
    sessions: HashMap<ChannelId, Pending>,
}

/// A session channel that runs nothing yet.
struct Pending {
    start: mpsc::Sender<Option<Start>>,
    pty: Option<PtyRequest>,
    env: ClientEnv,
}

/// One of the connection's channels, for as long as it lives.
#[derive(Debug)]
pub(super) struct ChannelSlot {
    channels: Arc<AtomicUsize>,
    budget: Arc<Budget>,
}

impl ChannelSlot {
    fn take(channels: &Arc<AtomicUsize>, budget: &Arc<Budget>) -> Option<Self> {
        if channels.load(Ordering::Relaxed) >= MAX_CHANNELS {
            return None;
        }
        channels.fetch_add(1, Ordering::Relaxed);
        Some(Self { channels: Arc::clone(channels), budget: Arc::clone(budget) })
    }

    pub fn window(&self, channel: ChannelId, handle: Handle) -> Window {
        Window::new(channel, handle, Arc::clone(&self.budget))
    }
}

impl Drop for ChannelSlot {
    fn drop(&mut self) {
        self.channels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    pub fn new(
        server: Arc<SshServer>,
        peer: Peer,
        logged_in: Arc<AtomicBool>,
        closed: CancellationToken,
    ) -> Self {
        Self {
            server,
            peer,
            budget: Arc::default(),
            logged_in,
            closed,
            user: None,
            channels: Arc::default(),
            sessions: HashMap::new(),
        }
    }

    fn authorize(
        &self,
        user: &str,
        key: &PublicKey,
        algorithm: &russh::keys::Algorithm,
    ) -> Option<User> {
        auth::authorize(&self.server.config_dir, user, key, algorithm)
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
        let start = Start { user, program, pty: pending.pty, env: pending.env, peer: self.peer };
        if pending.start.try_send(Some(start)).is_err() {
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
        let found = self.authorize(user, offer.public_key, offer.algorithm);
        ready(Ok(found.map_or_else(Auth::reject, |_| Auth::Accept)))
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
        self.user = Some(Arc::new(found));
        self.logged_in.store(true, Ordering::Relaxed);
        ready(Ok(Auth::Accept))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(slot) = ChannelSlot::take(&self.channels, &self.budget) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        // Room for a few refused requests before the one that starts something.
        let (start, starts) = mpsc::channel(16);
        let pending = Pending { start, pty: None, env: ClientEnv::default() };
        self.sessions.insert(channel.id(), pending);
        let server = Arc::clone(&self.server);
        let (handle, closed) = (session.handle(), self.closed.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = session::run(server, channel, handle, starts, slot) => {}
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
        let Some(slot) = ChannelSlot::take(&self.channels, &self.budget) else {
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
