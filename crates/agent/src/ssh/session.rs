//! A session channel: one process, its streams and its end.
//!
//! ```text
//! waiting --exec|shell|subsystem--> running --child ended: status sent, output at its end--> closed
//!    \--closed--> gone                 \--client closed--> streams dropped, the child left to itself
//! ```
//!
//! As with OpenSSH's server, the output ends when no process has it open any more. In a terminal it ends with the child.
//!
//! SFTP of the user that the agent runs as has no process: see [`sftp`].

use std::future::ready;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::exec::{self, ClientEnv, Program, Setting};
use super::flow::{Inbound, pump};
use super::inline_executor::InlineExecutor;
use super::server::{Peer, SshServer};
use super::sftp;
use super::slots::ChannelSlot;
use crate::passwd::User;
use crate::process::{self, Exit, Output, Started, Terminal};
use crate::pty::{self, Master, PtyRequest, TerminalOutput, window_size};

const STDERR: u32 = 1;
/// The exit code that shells return for a command that cannot be started.
const NOT_STARTED: i32 = 127;

/// The requested program, with the requests that preceded it.
#[derive(Debug)]
pub(super) struct Start {
    pub user: Arc<User>,
    pub program: Program,
    pub pty: Option<PtyRequest>,
    pub env: ClientEnv,
    /// The socket that leads to the client's key agent, if it was asked for.
    pub agent: Option<PathBuf>,
    pub peer: Peer,
}

struct Running {
    child: Started,
    stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    master: Option<Master>,
}

/// Runs the channel until it is closed.
pub(super) async fn run(
    server: Arc<SshServer>,
    in_place: Arc<InlineExecutor>,
    channel: Channel<Msg>,
    handle: Handle,
    mut starts: mpsc::Receiver<Option<Start>>,
    slot: ChannelSlot,
) {
    let (mut reader, writer) = channel.split();
    let mut inbound = Inbound::new(slot.window(writer.id(), handle.clone()));
    let Some(start) = wait_for_start(&mut reader, &mut starts).await else {
        return;
    };
    let may_be_here = start.program == Program::Sftp && server.is_itself(&start.user);
    let ended = if let Some(worker) = may_be_here.then(|| in_place.take()).flatten() {
        let home = start.user.home.clone();
        let served = sftp::serve(worker, home, &mut reader, &writer, &mut inbound).await;
        served.map(|served| match served {
            Ok(()) => (Some(Exit::Code(0)), None),
            Err(error) => (Some(Exit::Code(1)), Some(format!("kohakuriver: {error}\r\n"))),
        })
    } else {
        match launch(&server, start) {
            Ok((running, outputs)) => {
                let attended =
                    attend(running, outputs, &mut reader, &writer, &handle, &mut inbound).await;
                attended.map(|exit| (exit, None))
            }
            Err(message) => {
                tracing::debug!(%message, "session not started");
                let message = format!("kohakuriver: {message}\r\n");
                Some((Some(Exit::Code(NOT_STARTED)), Some(message)))
            }
        }
    };
    let Some((exit, message)) = ended else {
        return;
    };
    tokio::select! {
        () = finish(exit, message, &writer, &handle) => {}
        // A full queue of this channel would hold up its connection, and with it what is sent here.
        () = discard(&mut reader, &mut inbound) => {}
    }
}

/// Takes the channel's messages until the client closes it.
async fn discard(reader: &mut ChannelReadHalf, inbound: &mut Inbound) {
    inbound.close();
    while let Some(message) = reader.wait().await {
        if let ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } = message {
            inbound.push(data);
        }
    }
}

/// Takes the channel's messages until one starts a program. The handler answers each that tries.
async fn wait_for_start(
    reader: &mut ChannelReadHalf,
    starts: &mut mpsc::Receiver<Option<Start>>,
) -> Option<Start> {
    loop {
        let message = reader.wait().await?;
        if matches!(
            message,
            ChannelMsg::Exec { .. }
                | ChannelMsg::RequestShell { .. }
                | ChannelMsg::RequestSubsystem { .. }
        ) && let Some(start) = starts.recv().await?
        {
            return Some(start);
        }
    }
}

/// Our ends of what the child writes to.
enum Outputs {
    Pipes(Output, Output),
    Terminal(Master),
}

fn launch(server: &SshServer, start: Start) -> Result<(Running, Outputs), String> {
    // A file transfer's bytes would not survive a terminal.
    let request = start.pty.as_ref().filter(|_| start.program != Program::Sftp);
    let new_pty = request
        .map(|request| pty::open(request, start.user.uid))
        .transpose()
        .map_err(|error| format!("cannot open a terminal: {error}"))?;
    let setting = Setting {
        peer: start.peer,
        client: &start.env,
        terminal: request
            .zip(new_pty.as_ref())
            .map(|(request, pty)| (request.term.as_str(), pty.path.as_path())),
        agent: start.agent.as_deref(),
    };
    let spec = exec::process(server, &start.user, &start.program, setting)
        .map_err(|error| error.to_string())?;
    let program = spec.program.to_string_lossy().into_owned();
    let cannot_start = |error: io::Error| format!("cannot start {program}: {error}");
    let (master, terminal) = match new_pty {
        Some(pty) => (Some(pty.master), Terminal::Pty(pty.slave)),
        None => (None, Terminal::Pipes),
    };
    let mut child = process::start(&server.children, spec, terminal).map_err(cannot_start)?;
    match (master, child.pipes.take()) {
        (Some(master), _) => {
            let running = Running {
                child,
                stdin: Some(Box::pin(master.clone())),
                master: Some(master.clone()),
            };
            Ok((running, Outputs::Terminal(master)))
        }
        (None, Some((stdin, stdout, stderr))) => {
            let running = Running { child, stdin: Some(Box::pin(stdin)), master: None };
            Ok((running, Outputs::Pipes(stdout, stderr)))
        }
        (None, None) => Err(cannot_start(io::Error::from(io::ErrorKind::BrokenPipe))),
    }
}

/// Attends the child until it has ended and its output is sent. Returns its status where that is still to be sent, and
/// `None` where the client has gone.
async fn attend(
    mut running: Running,
    outputs: Outputs,
    reader: &mut ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    handle: &Handle,
    inbound: &mut Inbound,
) -> Option<Option<Exit>> {
    let ended = CancellationToken::new();
    let (unread, mut unreading) = watch::channel(false);
    let drained = async {
        match outputs {
            Outputs::Terminal(master) => {
                pump(TerminalOutput::new(master, ended.clone()), writer, None).await;
            }
            Outputs::Pipes(stdout, stderr) => {
                let from_stdout = async {
                    tokio::select! {
                        () = pump(stdout, writer, None) => {}
                        // The pipe is closed with this: who writes on is told, as by any reader that has gone.
                        _ = unreading.wait_for(|unread| *unread) => {}
                    }
                };
                tokio::join!(from_stdout, pump(stderr, writer, Some(STDERR)));
            }
        }
    };
    tokio::pin!(drained);

    let mut all_sent = false;
    let mut exit = None;
    let mut is_status_sent = false;
    let mut client_eof = false;
    loop {
        if exit.is_some() && all_sent {
            return Some(exit.filter(|_| !is_status_sent));
        }
        let stdin = &mut running.stdin;
        tokio::select! {
            // All that has come is written together. The window bounds it.
            biased;
            message = reader.wait() => {
                let message = message?;
                if let ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } = message {
                    inbound.push(data);
                } else if matches!(message, ChannelMsg::Eof) {
                    client_eof = true;
                } else if matches!(message, ChannelMsg::EndOfWrite) {
                    unread.send_replace(true);
                } else {
                    control(&message, &running);
                }
            }
            written = write_some(stdin, inbound), if stdin.is_some() && !inbound.is_empty() => {
                if written.is_err() {
                    // The child reads no more; what else arrives is dropped, as with a broken pipe.
                    running.stdin = None;
                    inbound.close();
                }
            }
            status = &mut running.child.exit, if exit.is_none() => {
                exit = Some(status.unwrap_or(Exit::Code(NOT_STARTED)));
                running.stdin = None;
                inbound.close();
                ended.cancel();
            }
            () = &mut drained, if !all_sent => all_sent = true,
            // Others have the output open: a client that only waits for the child knows its end now.
            () = ready(()), if exit.is_some() && !is_status_sent => {
                is_status_sent = true;
                send_status(exit, writer, handle).await;
            }
        }
        // A terminal has no end of file of its own: closing it would hang it up.
        if client_eof && inbound.is_empty() && running.master.is_none() {
            running.stdin = None;
        }
    }
}

async fn write_some(
    stdin: &mut Option<Pin<Box<dyn AsyncWrite + Send>>>,
    inbound: &mut Inbound,
) -> io::Result<()> {
    match stdin {
        Some(stdin) => inbound.write_some(stdin).await,
        None => Ok(()),
    }
}

/// Acts on what a client may ask of a running program.
fn control(message: &ChannelMsg, running: &Running) {
    if let ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } = message {
        if let Some(master) = &running.master {
            master.resize(window_size(*col_width, *row_height, *pix_width, *pix_height));
        }
    } else if let ChannelMsg::Signal { signal } = message
        && let Some(signal) = to_signal(signal)
    {
        // The child leads its own session, hence its own process group. It may have ended: then nobody is hit,
        // since an unreaped or registered id is not given out again.
        if let Err(error) = killpg(Pid::from_raw(running.child.pid.cast_signed()), signal) {
            tracing::debug!(%error, "signal not delivered");
        }
    }
}

async fn finish(
    exit: Option<Exit>,
    message: Option<String>,
    writer: &ChannelWriteHalf<Msg>,
    handle: &Handle,
) {
    if let Some(message) = message {
        let _ = writer.extended_data_bytes(STDERR, Bytes::from(message)).await;
    }
    let _ = writer.eof().await;
    send_status(exit, writer, handle).await;
    let _ = writer.close().await;
}

async fn send_status(exit: Option<Exit>, writer: &ChannelWriteHalf<Msg>, handle: &Handle) {
    match exit {
        None => {}
        Some(Exit::Code(code)) => {
            let _ = writer.exit_status(code.cast_unsigned()).await;
        }
        Some(Exit::Signal { number, core_dumped }) => {
            let name = from_signal(number);
            let _ = handle
                .exit_signal_request(writer.id(), name, core_dumped, String::new(), String::new())
                .await;
        }
    }
}

fn to_signal(signal: &Sig) -> Option<Signal> {
    match signal {
        Sig::ABRT => Some(Signal::SIGABRT),
        Sig::ALRM => Some(Signal::SIGALRM),
        Sig::FPE => Some(Signal::SIGFPE),
        Sig::HUP => Some(Signal::SIGHUP),
        Sig::ILL => Some(Signal::SIGILL),
        Sig::INT => Some(Signal::SIGINT),
        Sig::KILL => Some(Signal::SIGKILL),
        Sig::PIPE => Some(Signal::SIGPIPE),
        Sig::QUIT => Some(Signal::SIGQUIT),
        Sig::SEGV => Some(Signal::SIGSEGV),
        Sig::TERM => Some(Signal::SIGTERM),
        Sig::USR1 => Some(Signal::SIGUSR1),
        Sig::Custom(name) => format!("SIG{name}").parse().ok(),
    }
}

fn from_signal(number: i32) -> Sig {
    let Ok(signal) = Signal::try_from(number) else {
        return Sig::Custom(format!("{number}@kohakuriver"));
    };
    let name = signal.as_str().trim_start_matches("SIG");
    let known = [
        Sig::ABRT,
        Sig::ALRM,
        Sig::FPE,
        Sig::HUP,
        Sig::ILL,
        Sig::INT,
        Sig::KILL,
        Sig::PIPE,
        Sig::QUIT,
        Sig::SEGV,
        Sig::TERM,
        Sig::USR1,
    ];
    let same = |candidate: &Sig| to_signal(candidate) == Some(signal);
    known.into_iter().find(same).unwrap_or_else(|| Sig::Custom(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_survives_the_way_to_its_protocol_name_and_back() {
        for signal in Signal::iterator() {
            assert_eq!(to_signal(&from_signal(signal as i32)), Some(signal));
        }
    }
}
