//! Where we listen because the client asked: `ssh -R`, and the socket of its key agent (`ssh -A`).
//!
//! Every connection that comes in becomes a channel of its own, opened from our side. A listener ends when the client
//! cancels it, and with its SSH connection; what it left in the file system goes with it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::server::Handle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::forward::relay;
use super::slots::Slots;
use crate::passwd::User;
use crate::process::{self, Children};

/// Editors and debuggers ask for a handful.
const MAX_LISTENERS: usize = 64;
const BACKLOG: u32 = 128;
/// Below it only root may listen.
const UNPRIVILEGED: u16 = 1024;
/// Waited after an accept that failed: out of descriptors, most likely.
const RETRY: Duration = Duration::from_millis(100);

/// The key by which a listener is cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Tcp { address: String, port: u32 },
    Socket(PathBuf),
}

/// How the client learns what a connection is for.
#[derive(Debug, Clone)]
enum Purpose {
    Tcp { address: String, port: u32 },
    Socket(String),
    Agent,
}

#[derive(Debug)]
struct Open {
    /// Ends the task that accepts.
    _accepting: DropGuard,
    _file: Option<SocketFile>,
}

/// A socket in the file system, removed when it is dropped.
#[derive(Debug)]
struct SocketFile {
    children: Arc<Children>,
    user: Arc<User>,
    directory: Option<PathBuf>,
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = process::remove_as(
            &self.children,
            self.user.identity(),
            self.directory.as_deref(),
            &self.path,
        );
        if let Err(error) = removed {
            tracing::debug!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

/// The connection's listeners.
pub(super) struct Listeners {
    children: Arc<Children>,
    slots: Slots,
    closed: CancellationToken,
    open: HashMap<Name, Open>,
    /// The key agent's socket, once a session asked for it.
    agent: Option<(PathBuf, Open)>,
}

impl Listeners {
    pub fn new(children: Arc<Children>, slots: Slots, closed: CancellationToken) -> Self {
        Self { children, slots, closed, open: HashMap::new(), agent: None }
    }

    /// Listens on the loopback addresses, whatever address was asked for: a VPS's own ports are not for others by way
    /// of a client's forward. Returns the port.
    pub fn listen_tcp(
        &mut self,
        user: &User,
        handle: &Handle,
        address: &str,
        port: u32,
    ) -> io::Result<u32> {
        let wanted = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
        if wanted != 0 && wanted < UNPRIVILEGED && user.uid != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.check_room()?;
        let first = bind((Ipv4Addr::LOCALHOST, wanted).into())?;
        let bound = first.local_addr()?.port();
        let port = u32::from(bound);
        // An instance may have no IPv6.
        let second = bind((Ipv6Addr::LOCALHOST, bound).into()).ok();
        let address = address.to_owned();
        let purpose = Purpose::Tcp { address: address.clone(), port };
        let stop = CancellationToken::new();
        for listener in std::iter::once(first).chain(second) {
            self.spawn(Accepting::Tcp(listener), purpose.clone(), handle, &stop);
        }
        let open = Open { _accepting: stop.drop_guard(), _file: None };
        self.open.insert(Name::Tcp { address, port }, open);
        Ok(port)
    }

    pub fn cancel_tcp(&mut self, address: &str, port: u32) -> bool {
        self.open.remove(&Name::Tcp { address: address.to_owned(), port }).is_some()
    }

    /// Listens on a socket that belongs to the user and that only this user can connect to.
    pub fn listen_socket(
        &mut self,
        user: &Arc<User>,
        handle: &Handle,
        path: &str,
    ) -> io::Result<()> {
        self.check_room()?;
        let purpose = Purpose::Socket(path.to_owned());
        let open = self.open_socket(user, handle, None, Path::new(path), purpose)?;
        self.open.insert(Name::Socket(path.into()), open);
        Ok(())
    }

    pub fn cancel_socket(&mut self, path: &str) -> bool {
        self.open.remove(&Name::Socket(path.into())).is_some()
    }

    /// The path of a socket that leads to the client's key agent; the same for all sessions of the connection.
    pub fn agent_socket(&mut self, user: &Arc<User>, handle: &Handle) -> io::Result<PathBuf> {
        if let Some((path, _)) = &self.agent {
            return Ok(path.clone());
        }
        // It only has to be free: the directory is made, never found.
        let name = RandomState::new().build_hasher().finish();
        let directory = PathBuf::from(format!("/tmp/ssh-{name:016x}"));
        let path = directory.join("agent.sock");
        let open = self.open_socket(user, handle, Some(directory), &path, Purpose::Agent)?;
        self.agent = Some((path.clone(), open));
        Ok(path)
    }

    fn open_socket(
        &self,
        user: &Arc<User>,
        handle: &Handle,
        directory: Option<PathBuf>,
        path: &Path,
        purpose: Purpose,
    ) -> io::Result<Open> {
        let listener =
            process::listen_as(&self.children, user.identity(), directory.as_deref(), path)?;
        let file = SocketFile {
            children: Arc::clone(&self.children),
            user: Arc::clone(user),
            directory,
            path: path.to_owned(),
        };
        let stop = CancellationToken::new();
        self.spawn(Accepting::Unix(listener), purpose, handle, &stop);
        Ok(Open { _accepting: stop.drop_guard(), _file: Some(file) })
    }

    fn check_room(&self) -> io::Result<()> {
        if self.open.len() < MAX_LISTENERS {
            Ok(())
        } else {
            Err(io::ErrorKind::QuotaExceeded.into())
        }
    }

    fn spawn(
        &self,
        accepting: Accepting,
        purpose: Purpose,
        handle: &Handle,
        stop: &CancellationToken,
    ) {
        let (slots, closed) = (self.slots.clone(), self.closed.clone());
        let (handle, stop) = (handle.clone(), stop.clone());
        tokio::spawn(async move {
            let forward = Forward { purpose, handle, slots, closed };
            tokio::select! {
                () = stop.cancelled() => {}
                () = accepting.run(forward) => {}
            }
        });
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    async fn run(self, forward: Forward) {
        loop {
            let accepted = match &self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    forward.start(reader, writer, Some(peer));
                }),
                Self::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    let (reader, writer) = stream.into_split();
                    forward.start(reader, writer, None);
                }),
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "connection to a forward not accepted");
                sleep(RETRY).await;
            }
        }
    }
}

/// The state needed to turn a connection into a channel.
struct Forward {
    purpose: Purpose,
    handle: Handle,
    slots: Slots,
    closed: CancellationToken,
}

impl Forward {
    fn start<R, W>(&self, reader: R, writer: W, peer: Option<SocketAddr>)
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let Some(slot) = self.slots.take() else {
            tracing::debug!("connection to a forward dropped: too many channels");
            return;
        };
        let (purpose, handle, closed) =
            (self.purpose.clone(), self.handle.clone(), self.closed.clone());
        tokio::spawn(async move {
            let run = async {
                let opened = match purpose {
                    Purpose::Tcp { address, port } => {
                        let (ip, from) = peer.map_or_else(Default::default, |peer| {
                            (peer.ip().to_string(), peer.port())
                        });
                        handle.channel_open_forwarded_tcpip(address, port, ip, from.into()).await
                    }
                    Purpose::Socket(path) => handle.channel_open_forwarded_streamlocal(path).await,
                    Purpose::Agent => handle.channel_open_agent().await,
                };
                match opened {
                    Ok(channel) => {
                        let window = slot.window(channel.id(), handle);
                        relay(channel, reader, writer, window).await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the client refused a forwarded connection");
                    }
                }
            };
            tokio::select! {
                () = closed.cancelled() => {}
                () = run => {}
            }
        });
    }
}
