//! Runs one program for a client of the exec protocol.
//!
//! ```text
//!  Start --started--> running --child ended, output at its end--> Exit, closed
//!     \--cannot be--> Failed     \--client gone--> hung up, its output dropped
//! ```
//!
//! The output is at its end when no process has it open any more, as with `ssh` and `docker exec`;
//! in a terminal, when the program has ended.
//!
//! The client's messages are always read, whatever the program does with its input and the client
//! with the output: a signal must get through. What may be waiting is bounded by the protocol's
//! window.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kohakuriver_agent_protocol::exec::{
    ExecFailed, ExecInput, ExecOutput, ExecStart, STDIN_WINDOW, Size, Tty,
};
use kohakuriver_agent_protocol::{FrameReader, finish, write};
use kohakuriver_net::{Socket, SocketReader, SocketWriter};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::launch::{self, Launcher, SpawnRequest, failed};
use crate::process::{self, Exit, Started, Terminal};
use crate::pty::{self, Master, PtyRequest, TerminalOutput, window_size};

/// The client's first message follows its request at once.
const START_DEADLINE: Duration = Duration::from_secs(10);
const BLOCK: usize = 32 * 1024;
/// How long a program may go on writing after its client has gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// The byte that a terminal reads as the end of input.
const END_OF_TRANSMISSION: &[u8] = &[4];

type Reader = FrameReader<SocketReader, ExecInput>;
type Writer = tokio::sync::Mutex<SocketWriter>;

/// Serves one program on the stream.
pub(crate) async fn serve(stream: Socket, launcher: &Launcher) {
    let (read, write_half) = stream.into_split();
    let mut reader = Reader::new(read, &[]);
    let writer = Writer::new(write_half);
    let start = match timeout(START_DEADLINE, reader.next()).await {
        Ok(Ok(Some(ExecInput::Start(start)))) => Ok(start),
        Ok(Ok(_)) => Err("the first message must say what to run".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => return,
    };
    let running = start.map_err(|why| failed(126, why)).and_then(|start| launch(launcher, start));
    let last = match running {
        Ok(running) => match running.attend(&mut reader, &writer).await {
            Some(exit) => ExecOutput::Exit(launch::exit(exit)),
            None => return,
        },
        Err(failed) => ExecOutput::Failed(failed),
    };
    finish(&mut reader, &mut *writer.lock().await, &last).await;
}

struct Running {
    child: Started,
    master: Option<Master>,
}

fn launch(launcher: &Launcher, start: ExecStart) -> Result<Running, ExecFailed> {
    let user = launcher.user(start.user.as_deref())?;
    let pty = start
        .tty
        .as_ref()
        .map(|tty| pty::open(&terminal_request(tty), user.uid))
        .transpose()
        .map_err(|error| failed(126, format!("cannot open a terminal: {error}")))?;
    let spec = launcher.spec(
        &user,
        SpawnRequest {
            argv: start.argv.into_iter().map(Into::into).collect(),
            env: start.env,
            locale: start.locale,
            workdir: start.workdir.map(PathBuf::from),
            term: start.tty.map(|tty| tty.term),
        },
    )?;
    let program = PathBuf::from(&spec.program);
    let (master, terminal) = match pty {
        Some(pty) => (Some(pty.master), Terminal::Pty(pty.slave)),
        None => (None, Terminal::Pipes),
    };
    let child = process::start(&launcher.children, spec, terminal)
        .map_err(|error| launch::not_started(&program, &error))?;
    Ok(Running { child, master })
}

pub(crate) fn terminal_request(tty: &Tty) -> PtyRequest {
    PtyRequest { term: tty.term.clone(), size: winsize(tty.size), modes: Vec::new() }
}

pub(crate) fn winsize(size: Size) -> nix::pty::Winsize {
    window_size(size.cols.into(), size.rows.into(), 0, 0)
}

impl Running {
    /// Attends the program until it has ended and its output is sent. None: the client has gone.
    async fn attend(mut self, reader: &mut Reader, writer: &Writer) -> Option<Exit> {
        let stdin = Stdin::default();
        let ended = CancellationToken::new();
        let pipes = self.child.pipes.take();
        let (mut input, outputs): (Box<dyn AsyncWrite + Send + Unpin>, _) =
            match (&self.master, pipes) {
                (Some(master), _) => (Box::new(master.clone()), (Some(master.clone()), None)),
                (None, Some((input, stdout, stderr))) => {
                    (Box::new(input), (None, Some((stdout, stderr))))
                }
                (None, None) => return Some(Exit::Code(126)),
            };
        let drained = async {
            match outputs {
                (Some(master), _) => {
                    let output = TerminalOutput::new(master, ended.clone());
                    pump(output, writer, ExecOutput::Stdout).await;
                }
                (None, Some((stdout, stderr))) => {
                    tokio::join!(
                        pump(stdout, writer, ExecOutput::Stdout),
                        pump(stderr, writer, ExecOutput::Stderr),
                    );
                }
                (None, None) => {}
            }
        };
        let is_terminal = self.master.is_some();
        let feeding = async {
            let fed = stdin.feed(&mut input).await;
            if is_terminal && fed.is_ok() {
                // Closing a terminal would hang it up; this is its way to say that nothing follows.
                let _ = input.write_all(END_OF_TRANSMISSION).await;
                std::future::pending::<()>().await;
            }
            drop(input);
            stdin.discard().await;
        };
        let acknowledging = stdin.acknowledge(writer);
        tokio::pin!(drained, feeding, acknowledging);

        let (mut all_sent, mut exit) = (false, None);
        let client_is_gone = loop {
            if exit.is_some() && all_sent {
                break false;
            }
            tokio::select! {
                message = reader.next() => match message {
                    Ok(Some(message)) => {
                        if let Err(why) = self.take(message, &stdin, exit.is_none()) {
                            tracing::debug!(why, "exec ended");
                            break true;
                        }
                    }
                    Ok(None) | Err(_) => break true,
                },
                () = &mut feeding => {}
                () = &mut acknowledging => break true,
                status = &mut self.child.exit, if exit.is_none() => {
                    exit = Some(status.unwrap_or(Exit::Code(126)));
                    ended.cancel();
                }
                () = &mut drained, if !all_sent => all_sent = true,
            }
        };
        if !client_is_gone {
            return exit;
        }
        if exit.is_none() {
            self.signal(Signal::SIGHUP);
            let ending = async {
                if all_sent {
                    return drop((&mut self.child.exit).await);
                }
                tokio::select! {
                    _ = &mut self.child.exit => {}
                    () = &mut drained => {}
                }
            };
            // Its last words find a reader, or they would kill it before it has tidied up.
            let _ = timeout(HANG_UP_GRACE, ending).await;
        }
        None
    }

    /// Does what the client says; its error ends everything.
    fn take(&self, message: ExecInput, stdin: &Stdin, lives: bool) -> Result<(), &'static str> {
        match message {
            ExecInput::Start(_) => return Err("started twice"),
            ExecInput::Stdin(data) => return stdin.push(data),
            ExecInput::StdinEnd => stdin.end(),
            ExecInput::Signal(number) => {
                if let (true, Ok(signal)) = (lives, Signal::try_from(i32::from(number))) {
                    self.signal(signal);
                }
            }
            ExecInput::Resize(size) => {
                if let Some(master) = &self.master {
                    master.resize(winsize(size));
                }
            }
        }
        Ok(())
    }

    /// Signals the process group only while the program lives: afterwards the kernel may reuse its
    /// number.
    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(self.child.pid.cast_signed());
        if let Err(error) = killpg(group, signal) {
            tracing::debug!(%error, "signal not delivered");
        }
    }
}

/// Sends what `source` says until its end.
async fn pump<R: AsyncRead + Unpin>(
    mut source: R,
    writer: &Writer,
    message: fn(Bytes) -> ExecOutput,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(BLOCK);
        let mut limited = (&mut buffer).limit(BLOCK);
        match source.read_buf(&mut limited).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let message = message(buffer.split().freeze());
        // To nobody, once the client has gone.
        let _ = write(&mut *writer.lock().await, &message).await;
    }
}

/// Standard input on its way, with the client's window.
#[derive(Default)]
struct Stdin {
    state: Mutex<StdinState>,
    /// Something to write, or the end.
    more: Notify,
    /// Something to acknowledge.
    taken: Notify,
}

#[derive(Default)]
struct StdinState {
    queue: VecDeque<Bytes>,
    /// Received and not acknowledged.
    outstanding: usize,
    taken: usize,
    ended: bool,
}

impl Stdin {
    fn lock(&self) -> MutexGuard<'_, StdinState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, data: Bytes) -> Result<(), &'static str> {
        let mut state = self.lock();
        state.outstanding += data.len();
        if state.outstanding > STDIN_WINDOW {
            return Err("the client sent more standard input than its window allows");
        }
        if !data.is_empty() && !state.ended {
            state.queue.push_back(data);
        }
        self.more.notify_one();
        Ok(())
    }

    fn end(&self) {
        self.lock().ended = true;
        self.more.notify_one();
    }

    fn took(&self, bytes: usize) {
        self.lock().taken += bytes;
        self.taken.notify_one();
    }

    /// Writes what comes until the client ends it.
    async fn feed<W: AsyncWrite + Unpin>(&self, input: &mut W) -> io::Result<()> {
        loop {
            let (next, ended) = {
                let mut state = self.lock();
                (state.queue.pop_front(), state.ended)
            };
            let Some(mut data) = next else {
                if ended {
                    return Ok(());
                }
                self.more.notified().await;
                continue;
            };
            while !data.is_empty() {
                match input.write(&data).await {
                    Ok(written @ 1..) => {
                        data.advance(written);
                        self.took(written);
                    }
                    result => {
                        self.took(data.len());
                        return result.map(drop);
                    }
                }
            }
        }
    }

    /// The program reads no more: what comes is taken, as by a broken pipe.
    async fn discard(&self) {
        loop {
            let dropped: usize = self.lock().queue.drain(..).map(|data| data.len()).sum();
            self.took(dropped);
            self.more.notified().await;
        }
    }

    /// Tells the client what was taken, until it listens no more.
    async fn acknowledge(&self, writer: &Writer) {
        loop {
            self.taken.notified().await;
            let mut writer = writer.lock().await;
            let taken = {
                let mut state = self.lock();
                state.outstanding = state.outstanding.saturating_sub(state.taken);
                std::mem::take(&mut state.taken)
            };
            let message = ExecOutput::StdinTaken(u32::try_from(taken).unwrap_or(u32::MAX));
            if taken > 0 && write(&mut *writer, &message).await.is_err() {
                return;
            }
        }
    }
}
