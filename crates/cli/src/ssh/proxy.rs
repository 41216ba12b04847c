//! `kohakuriver ssh-proxy`: what ssh runs as its ProxyCommand. With `ProxyUseFdpass` it gives ssh
//! the open connection and is gone: no byte of scp or rsync passes here. For settings written
//! without that, nothing but copying happens once the tunnel stands.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream as BlockingStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::context::Context;
use crate::failure::Failure;

/// For connecting and for the gateway's first line.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The gateway's answer is one short sentence.
const LONGEST_ANSWER: usize = 1024;
/// Larger brings nothing measurable.
const BUFFER_BYTES: usize = 128 * 1024;
/// What an unprivileged process may ask for by default.
const PIPE_BYTES: i32 = 1024 * 1024;

#[derive(clap::Args, Clone, Debug)]
pub struct ProxyArgs {
    /// The VPS's id
    #[arg(long)]
    id: String,
    /// Port of the host's SSH gateway
    #[arg(long, value_name = "PORT")]
    proxy_port: Option<u16>,
    /// Give ssh the connection instead of carrying its bytes
    #[arg(long)]
    pass_socket: bool,
}

pub async fn run(context: &Context, args: &ProxyArgs) -> Result<(), Failure> {
    let port = args.proxy_port.unwrap_or(context.settings.ssh_proxy_port.value);
    let stream = tunnel(context.settings.host.value.as_str(), port, &args.id).await?;
    let broken = |error: io::Error| Failure::request(format!("the tunnel broke: {error}"));
    let stream = stream.into_std().map_err(broken)?;
    stream.set_nonblocking(false).map_err(broken)?;
    if args.pass_socket {
        return pass(&stream).map_err(|error| {
            Failure::request(format!("ssh did not take the connection: {error}"))
                .hint("its settings need ProxyUseFdpass=yes: run `kohakuriver ssh config` again")
        });
    }
    carry(stream).map_err(broken)
}

/// Asks the gateway for a VPS and waits for its word.
pub async fn tunnel(host: &str, port: u16, id: &str) -> Result<TcpStream, Failure> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(Failure::usage(format!("'{id}' is not a VPS's id")));
    }
    let unreachable = |reason: &dyn std::fmt::Display| {
        Failure::unreachable(format!("the SSH gateway {host}:{port} is not reachable: {reason}"))
            .hint("see `kohakuriver config show` for the host and the gateway's port")
    };
    let mut stream = match timeout(ANSWER_LIMIT, kohakuriver_net::connect(host, port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"it did not answer in time")),
    };
    // A laptop that slept must not keep a dead connection for hours.
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    let ask = async {
        stream.write_all(format!("REQUEST_TUNNEL {id}\n").as_bytes()).await?;
        first_line(&mut stream).await
    };
    let line = match timeout(ANSWER_LIMIT, ask).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(unreachable(&error)),
        Err(_) => return Err(unreachable(&"it did not answer in time")),
    };
    match line.as_str() {
        "SUCCESS" => Ok(stream),
        line => {
            let text =
                line.strip_prefix("ERROR").map_or(line, |text| text.trim_start_matches([':', ' ']));
            let clean: String = text.chars().filter(|c| !c.is_control()).collect();
            Err(Failure::request(format!("the gateway refused: {clean}"))
                .hint(format!("`kohakuriver vps status {id}` shows the VPS")))
        }
    }
}

/// Byte by byte, because what follows the line belongs to ssh.
async fn first_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        line.push(byte);
        if line.len() > LONGEST_ANSWER {
            return Err(io::Error::other("what answers there is no KohakuRiver gateway"));
        }
    }
}

/// Gives ssh the connection as it wants it: beside one byte, on standard output.
fn pass(stream: &BlockingStream) -> io::Result<()> {
    let connection = [stream.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&connection)];
    let byte = [IoSlice::new(&[0])];
    sendmsg::<()>(io::stdout().as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Copies until the VPS has closed. When ssh closes first, only that half ends.
fn carry(stream: BlockingStream) -> io::Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let sending = stream.try_clone()?;
    // Not joined: it may wait for ever on a keyboard, and ends with the process.
    thread::Builder::new().name("to-vps".to_owned()).spawn(move || {
        let _ = copy(&input, &sending, &input);
        let _ = sending.shutdown(Shutdown::Write);
    })?;
    match copy(&stream, &output, &output) {
        // ssh is gone: there is nobody left to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => other,
    }
}

/// Copies to the end through one large buffer. Not by blocking splice: with it ssh hung in its
/// handshake, since the pipe is held while the socket is waited for. `local` is ssh's end.
fn copy(mut reader: impl Read, mut writer: impl Write, local: &File) -> io::Result<()> {
    // A pipe's default of 64 KiB makes for many small steps; a refusal changes nothing.
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
