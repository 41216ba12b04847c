//! Opening a stream to the agent inside an instance.
//!
//! ```text
//!  runner: {"target":"ssh"} | {"target":"tcp","port":N} | {"target":"ping"} \n
//!  agent:  {"ok":true} | {"ok":false,"error":".."} \n        then bytes, both ways
//! ```
//!
//! A container's socket lies in a directory that the container's root owns, so nothing in it is
//! trusted: no link is followed, only a socket is opened, and what answers may send little before
//! it is done. A guest's agent is a TCP connection away, and both ends prove the instance's secret
//! before the first line (`kohakuriver_agent_protocol::proof`).

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kohakuriver_agent::SOCKET_FILE;
use kohakuriver_agent_protocol::proof::{ProofError, prove_to_agent};
use kohakuriver_agent_protocol::{
    GuestSecret, StreamReply, StreamTarget, WireError, read_reply, write_request,
};
use kohakuriver_net::Socket;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

/// On the way to an agent's SSH server. There are 128 of these for each instance at most, while
/// forwarded connections, of which there may be thousands, have the system's usual 208 KiB.
const SSH_BUFFER: usize = 512 * 1024;
/// The agent itself gives up on a port sooner.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A VM whose QEMU was killed closes no connection: one that is silent for this long is over.
const SILENCE: Duration = Duration::from_secs(30);
/// A running agent answers within milliseconds.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// By the time the eighth is sent, the kernel has asked again for the first.
const MOST_ATTEMPTS: usize = 8;

/// The address of an instance's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAddress {
    /// A container's: the directory of its socket.
    Socket(PathBuf),
    /// A virtual machine's: its port, and what both ends have to know.
    Guest { address: SocketAddr, secret: GuestSecret },
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the instance's agent cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the instance's agent did not answer in time")]
    Slow,
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("the instance's agent sent an invalid response")]
    Answer(#[from] WireError),
    #[error("{0}")]
    Refused(String),
    #[error("the instance is not on this node")]
    NotHere,
    #[error("this VM has no agent: use its console (kohakuriver terminal attach)")]
    NoAgent,
}

/// Opens a stream of bytes to `target`.
pub async fn open(agent: &AgentAddress, target: &StreamTarget) -> Result<Socket, AgentError> {
    within(OPEN_LIMIT, ask(agent, target)).await
}

/// Checks that the agent is up.
pub async fn ping(agent: &AgentAddress) -> Result<(), AgentError> {
    within(Duration::from_secs(2), ask(agent, &StreamTarget::Ping)).await.map(drop)
}

/// Sends new settings to a guest's agent; they apply from the next login on.
///
/// # Errors
/// The agent is unreachable or refuses the settings.
pub async fn send_settings(agent: &AgentAddress, settings: &[u8]) -> Result<(), AgentError> {
    within(OPEN_LIMIT, async {
        let mut stream = ask(agent, &StreamTarget::Settings).await?;
        stream.write_all(settings).await.map_err(WireError::Io)?;
        stream.shutdown().await.map_err(WireError::Io)?;
        accepted(read_reply(&mut stream).await?)
    })
    .await
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(AgentError::Slow))
}

async fn ask(agent: &AgentAddress, request: &StreamTarget) -> Result<Socket, AgentError> {
    let mut stream = match agent {
        AgentAddress::Socket(run_dir) => {
            let stream = connect(run_dir).await.map_err(AgentError::Unreachable)?;
            if *request == StreamTarget::Ssh {
                // A bulk sender is woken less often. Less than this, where the system limits it, works too.
                let _ = SockRef::from(&stream).set_send_buffer_size(SSH_BUFFER);
            }
            stream.into()
        }
        AgentAddress::Guest { address, secret } => {
            connect_guest_retrying(*address, secret).await?.into()
        }
    };
    write_request(&mut stream, request).await?;
    accepted(read_reply(&mut stream).await?)?;
    Ok(stream)
}

fn accepted(reply: StreamReply) -> Result<(), AgentError> {
    match reply {
        StreamReply::Ready | StreamReply::Pong { .. } => Ok(()),
        StreamReply::Refused { error } => Err(AgentError::Refused(error)),
    }
}

/// Tries again beside what it has tried, for as long as nothing answers: the kernel asks a second
/// time only after a second, and a guest that has just come up shall not have to wait for that.
async fn connect_guest_retrying(
    address: SocketAddr,
    secret: &GuestSecret,
) -> Result<TcpStream, AgentError> {
    let mut attempts = FuturesUnordered::new();
    loop {
        if attempts.len() < MOST_ATTEMPTS {
            attempts.push(async {
                let mut stream = connect_guest(address).await.map_err(AgentError::Unreachable)?;
                prove_to_agent(&mut stream, secret).await?;
                Ok(stream)
            });
        }
        if let Ok(Some(outcome)) = tokio::time::timeout(ASK_AGAIN, attempts.next()).await {
            return outcome;
        }
    }
}

async fn connect_guest(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let alive = TcpKeepalive::new().with_time(SILENCE / 2).with_interval(SILENCE / 6);
    socket.set_tcp_keepalive(&alive.with_retries(3))?;
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    Ok(stream)
}

async fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let socket = open_socket(run_dir)?;
    // Through the descriptor: what was checked is what is connected to, whatever the name means
    // by now, and the path is shorter than the 108 bytes a socket address has.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

fn open_socket(run_dir: &Path) -> io::Result<OwnedFd> {
    let dir: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(run_dir)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let socket = openat(&dir, SOCKET_FILE, flags, Mode::empty())?;
    let kind = SFlag::from_bits_truncate(fstat(&socket)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "agent.sock is not a socket"));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use kohakuriver_agent_protocol::proof::admit_runner;
    use kohakuriver_agent_protocol::{MAX_LINE, read_request, write_reply};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    fn at(dir: &Path) -> AgentAddress {
        AgentAddress::Socket(dir.to_owned())
    }

    fn answering(dir: &Path, answer: &'static [u8]) {
        let listener = UnixListener::bind(dir.join(SOCKET_FILE)).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = read_request(&mut stream).await;
                let _ = stream.write_all(answer).await;
            }
        });
    }

    #[tokio::test]
    async fn bytes_after_the_answer_belong_to_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        answering(dir.path(), b"{\"ok\":true}\nSSH-2.0");
        let mut stream = open(&at(dir.path()), &StreamTarget::Tcp { port: 80 }).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "SSH-2.0");
        ping(&at(dir.path())).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_is_spoken_to_once_both_have_proven_the_secret() {
        let secret = GuestSecret::random();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let known = secret.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                if admit_runner(&mut stream, &known).await.is_err() {
                    continue;
                }
                let request = read_request(&mut stream).await.unwrap();
                stream.write_all(b"{\"ok\":true}\n").await.unwrap();
                if request == StreamTarget::Settings {
                    let mut settings = String::new();
                    stream.read_to_string(&mut settings).await.unwrap();
                    let error = format!("no {settings}");
                    write_reply(&mut stream, &StreamReply::Refused { error }).await.unwrap();
                }
            }
        });
        let agent = AgentAddress::Guest { address, secret };
        ping(&agent).await.unwrap();
        let refused = send_settings(&agent, b"keys").await.unwrap_err();
        assert_eq!(refused.to_string(), "no keys");

        let stranger = AgentAddress::Guest { address, secret: GuestSecret::random() };
        let error = ping(&stranger).await.unwrap_err();
        assert!(matches!(error, AgentError::Proof(ProofError::Rejected)), "{error}");
    }

    #[tokio::test]
    async fn silent_connection_to_a_guest_is_given_up_for_another() {
        let secret = GuestSecret::random();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent =
            AgentAddress::Guest { address: listener.local_addr().unwrap(), secret: secret.clone() };
        tokio::spawn(async move {
            let _silent = listener.accept().await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            admit_runner(&mut stream, &secret).await.unwrap();
            read_request(&mut stream).await.unwrap();
            stream.write_all(b"{\"ok\":true}\n").await.unwrap();
        });
        // Waiting for the first connection would take longer than an answer may.
        ping(&agent).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let dir = tempfile::tempdir().unwrap();
        answering(dir.path(), b"{\"ok\":false,\"error\":\"nothing listens\"}\n");
        let error = open(&at(dir.path()), &StreamTarget::Ssh).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing listens");
    }

    #[tokio::test]
    async fn an_endless_answer_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        answering(dir.path(), &[b'x'; 3 * MAX_LINE]);
        assert!(matches!(ping(&at(dir.path())).await, Err(AgentError::Answer(WireError::TooLong))));
    }

    #[tokio::test]
    async fn links_and_files_in_the_containers_directory_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        answering(outside.path(), b"{\"ok\":true}\n");
        ping(&at(outside.path())).await.unwrap();

        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(SOCKET_FILE);
        symlink(outside.path().join(SOCKET_FILE), &socket).unwrap();
        assert!(matches!(ping(&at(dir.path())).await, Err(AgentError::Unreachable(_))));
        std::fs::remove_file(&socket).unwrap();
        std::fs::write(&socket, b"").unwrap();
        assert!(matches!(ping(&at(dir.path())).await, Err(AgentError::Unreachable(_))));
        let linked = outside.path().join("linked");
        symlink(outside.path(), &linked).unwrap();
        assert!(matches!(ping(&at(&linked)).await, Err(AgentError::Unreachable(_))));
    }

    #[tokio::test]
    async fn a_path_longer_than_a_socket_address_works() {
        let dir = tempfile::tempdir().unwrap();
        answering(dir.path(), b"{\"ok\":true}\n");
        let long = dir.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        std::fs::rename(dir.path().join(SOCKET_FILE), long.join(SOCKET_FILE)).unwrap();
        ping(&at(&long)).await.unwrap();
    }
}
