//! `kohakuriver ssh-proxy`: the ProxyCommand of ssh.
//!
//! Without accounts, it opens the SSH gateway's tunnel, passes the socket to ssh (`ProxyUseFdpass`)
//! and exits: no byte of scp or rsync passes through this process. With a token or https, it opens a
//! stream of the API, which ssh cannot use by itself, so this process copies the bytes.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream as BlockingStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_net::Prefixed;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;

use crate::api::{Api, Stream};
use crate::context::Context;
use crate::error::CommandError;
use crate::stdout;

/// Time limit for connecting and for the gateway's first line.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Maximum length of the gateway's response line.
const LONGEST_ANSWER: usize = 1024;
/// Copy buffer; a larger one has no measurable benefit.
const BUFFER_BYTES: usize = 128 * 1024;
/// Pipe size, the default limit of an unprivileged process.
const PIPE_BYTES: i32 = 1024 * 1024;

#[derive(clap::Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Id of the VPS.
    #[arg(long)]
    id: String,
    /// Port of the host's SSH gateway [default: 8002].
    #[arg(long, value_name = "PORT")]
    proxy_port: Option<u16>,
    /// Pass the connection's socket to ssh instead of copying its bytes.
    #[arg(long)]
    pass_socket: bool,
}

/// The transport of SSH connections to the host.
#[derive(Clone, Debug)]
pub struct Gate {
    api: Api,
    gateway_port: u16,
    /// Whether to use a stream of the API, with TLS or a token, instead of the gateway.
    by_api: bool,
}

impl Gate {
    pub fn new(context: &Context, gateway_port: u16) -> Result<Self, CommandError> {
        let api = context.api.clone();
        let by_api = api.is_https() || api.token()?.is_some();
        Ok(Self { api, gateway_port, by_api })
    }

    /// Returns whether the connection's socket can be passed to ssh.
    pub fn gives_sockets(&self) -> bool {
        !self.by_api
    }

    /// Opens a stream to a VPS's SSH.
    pub async fn open(&self, id: &str) -> Result<Stream, CommandError> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(CommandError::usage(format!("'{id}' is not a VPS's id")));
        }
        if self.by_api {
            return self.api.stream(id, &StreamTarget::Ssh).await;
        }
        let stream = tunnel(self.api.host(), self.gateway_port, id).await?;
        Ok(Stream::new(Either::Left(stream), Bytes::new()))
    }
}

pub async fn run(context: &Context, args: &ProxyArgs) -> Result<(), CommandError> {
    let port = args.proxy_port.unwrap_or(context.settings.ssh_proxy_port.value);
    let gate = Gate::new(context, port)?;
    if args.pass_socket && !gate.gives_sockets() {
        return Err(CommandError::usage(
            "ssh's configuration was written before you logged in to this host",
        )
        .hint("run `kohakuriver ssh config` again"));
    }
    let broken = |error: io::Error| CommandError::request(format!("the tunnel broke: {error}"));
    let (stream, early) = gate.open(&args.id).await?.into_parts();
    let stream = match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => {
            return carry_here(Prefixed::new(stream, early)).await.map_err(broken);
        }
    };
    let stream = stream.into_std().map_err(broken)?;
    stream.set_nonblocking(false).map_err(broken)?;
    if args.pass_socket {
        return pass(&stream).map_err(|error| {
            CommandError::request(format!("ssh did not take the connection: {error}"))
                .hint("its settings need ProxyUseFdpass=yes: run `kohakuriver ssh config` again")
        });
    }
    carry(stream, &early).map_err(broken)
}

/// Requests a tunnel to a VPS from the gateway and waits for its response.
async fn tunnel(host: &str, port: u16, id: &str) -> Result<TcpStream, CommandError> {
    let unreachable = |reason: &dyn std::fmt::Display| {
        CommandError::unreachable(format!(
            "the SSH gateway {host}:{port} is not reachable: {reason}"
        ))
        .hint("see `kohakuriver config show` for the host and the gateway's port")
    };
    let mut stream = match timeout(ANSWER_LIMIT, kohakuriver_net::connect(host, port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"it did not respond in time")),
    };
    // A laptop that slept would otherwise hold a dead connection for hours.
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    let ask = async {
        stream.write_all(format!("REQUEST_TUNNEL {id}\n").as_bytes()).await?;
        first_line(&mut stream).await
    };
    let line = match timeout(ANSWER_LIMIT, ask).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"it did not respond in time")),
    };
    match line.as_str() {
        "SUCCESS" => Ok(stream),
        line => {
            let text =
                line.strip_prefix("ERROR").map_or(line, |text| text.trim_start_matches([':', ' ']));
            let clean: String = text.chars().filter(|c| !c.is_control()).collect();
            Err(CommandError::request(format!("the gateway refused: {clean}"))
                .hint(format!("`kohakuriver vps status {id}` shows the VPS")))
        }
    }
}

/// Reads byte by byte, because the bytes after the line belong to ssh.
async fn first_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        line.push(byte);
        if line.len() > LONGEST_ANSWER {
            return Err(io::Error::other(
                "the server at this address is not a KohakuRiver gateway",
            ));
        }
    }
}

/// Passes the socket to ssh, attached to one byte on standard output.
fn pass(stream: &BlockingStream) -> io::Result<()> {
    let connection = [stream.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&connection)];
    let byte = [IoSlice::new(&[0])];
    sendmsg::<()>(stdout::descriptor().as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Copies until the VPS has closed. When ssh closes first, only that half ends.
#[expect(clippy::disallowed_methods, reason = "its errors are the copy's")]
async fn carry_here(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> io::Result<()> {
    let (mut from_vps, mut to_vps) = split(stream);
    // Not joined: a read from a terminal may never return; it ends with the process.
    tokio::spawn(async move { kohakuriver_net::copy(&mut tokio::io::stdin(), &mut to_vps).await });
    let copied = kohakuriver_net::copy(&mut from_vps, &mut tokio::io::stdout()).await;
    unless_gone(copied.map(drop))
}

/// Copies a plain socket with blocking threads, which costs less.
fn carry(stream: BlockingStream, early: &[u8]) -> io::Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(stdout::descriptor().as_fd().try_clone_to_owned()?);
    let sending = stream.try_clone()?;
    // Not joined: a read from a terminal may never return; it ends with the process.
    thread::Builder::new().name("to-vps".to_owned()).spawn(move || {
        let _ = copy(&input, &sending, &input);
        let _ = sending.shutdown(Shutdown::Write);
    })?;
    unless_gone((&output).write_all(early).and_then(|()| copy(&stream, &output, &output)))
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        // ssh has exited, so the error has no reader.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => other,
    }
}

/// Copies to the end through one large buffer. `local` is ssh's end. A blocking splice made ssh hang in
/// its handshake, because it holds the pipe while it waits for the socket.
fn copy(mut reader: impl Read, mut writer: impl Write, local: &File) -> io::Result<()> {
    // A pipe's default of 64 KiB causes many small reads; an error here is harmless.
    let _ = fcntl(local, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => writer.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
