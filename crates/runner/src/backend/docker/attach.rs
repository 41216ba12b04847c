//! A program in a container by the engine's own means: for when the agent does not answer.
//!
//! The client speaks the exec protocol, as it would with the agent, and the engine runs the
//! program. It knows no signals for such a program, so they are sent to its process from here.

use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use kohakuriver_agent_protocol::exec::{
    ExecExit, ExecFailed, ExecInput, ExecOutput, ExecStart, Size, Word,
};
use kohakuriver_agent_protocol::{FrameReader, finish, write};
use kohakuriver_model::InstanceId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::client::{Engine, plain};
use super::container;

const START_DEADLINE: Duration = Duration::from_secs(10);
/// A terminal may not be there yet when its first size comes.
const RESIZE_TRIES: u32 = 5;
const RESIZE_PAUSE: Duration = Duration::from_millis(20);
/// Between two questions for the exit code.
const EXIT_PAUSE: Duration = Duration::from_millis(50);
/// Words of ours only: nothing of anybody's input is in it.
const LOGIN_SHELL: [&str; 3] =
    ["/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"];
const END_OF_TRANSMISSION: &[u8] = &[4];

type Reader = FrameReader<OwnedReadHalf, ExecInput>;

/// Serves one program on the stream.
pub async fn serve(engine: &Engine, id: InstanceId, stream: UnixStream) {
    let (read, mut writer) = stream.into_split();
    let mut reader = Reader::new(read, &[]);
    let Ok(Ok(Some(ExecInput::Start(start)))) = timeout(START_DEADLINE, reader.next()).await else {
        return;
    };
    let last = match run(engine, id, start, &mut reader, &mut writer).await {
        Ok(Some(exit)) => ExecOutput::Exit(exit),
        Ok(None) => return,
        Err(message) => ExecOutput::Failed(ExecFailed { code: 126, message }),
    };
    finish(&mut reader, &mut writer, &last).await;
}

async fn run(
    engine: &Engine,
    id: InstanceId,
    start: ExecStart,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> Result<Option<ExecExit>, String> {
    let docker = engine.docker().await.map_err(|error| error.to_string())?;
    let tty = start.tty.clone();
    let options = options(start)?;
    let created = docker.create_exec(&container::name(id), options).await;
    let exec = created.map_err(|error| plain(&error))?.id;
    let how = StartExecOptions { detach: false, tty: tty.is_some(), output_capacity: None };
    let started = docker.start_exec(&exec, Some(how)).await.map_err(|error| plain(&error))?;
    let StartExecResults::Attached { mut output, input } = started else {
        return Err("the engine did not attach".to_owned());
    };
    if let Some(tty) = &tty {
        resize(&docker, &exec, tty.size).await;
    }
    let program = Program { docker: &docker, exec: &exec, terminal: tty.is_some() };
    let mut input = Some(input);
    loop {
        tokio::select! {
            said = output.next() => {
                let message = match said {
                    Some(Ok(LogOutput::StdErr { message })) => ExecOutput::Stderr(message),
                    Some(Ok(
                        LogOutput::StdOut { message }
                        | LogOutput::Console { message }
                        | LogOutput::StdIn { message },
                    )) => ExecOutput::Stdout(message),
                    Some(Err(error)) => return Err(plain(&error)),
                    None => break,
                };
                if write(writer, &message).await.is_err() {
                    program.signal(Signal::SIGHUP).await;
                    return Ok(None);
                }
            }
            message = reader.next() => {
                let Ok(Some(message)) = message else {
                    program.signal(Signal::SIGHUP).await;
                    return Ok(None);
                };
                if let Some(taken) = program.take(message, &mut input).await {
                    let taken = ExecOutput::StdinTaken(u32::try_from(taken).unwrap_or(u32::MAX));
                    let _ = write(writer, &taken).await;
                }
            }
        }
    }
    // A program may close its output long before it ends.
    tokio::select! {
        exit = program.exit() => Ok(Some(exit)),
        () = at_end(reader) => {
            program.signal(Signal::SIGHUP).await;
            Ok(None)
        }
    }
}

/// Waits until the client has gone.
async fn at_end(reader: &mut Reader) {
    while let Ok(Some(_)) = reader.next().await {}
}

fn options(start: ExecStart) -> Result<CreateExecOptions<String>, String> {
    let text = |word: Word| match word {
        Word::Text(text) => Ok(text),
        Word::Bytes(_) => Err("the engine takes arguments that are text only".to_owned()),
    };
    let cmd = if start.argv.is_empty() {
        LOGIN_SHELL.map(ToOwned::to_owned).to_vec()
    } else {
        start.argv.into_iter().map(text).collect::<Result<_, _>>()?
    };
    let term = start.tty.iter().map(|tty| format!("TERM={}", tty.term));
    let given = start.env.into_iter().map(|(name, value)| format!("{name}={value}"));
    Ok(CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(start.tty.is_some()),
        env: Some(term.chain(given).collect()),
        cmd: Some(cmd),
        user: start.user,
        working_dir: start.workdir,
        ..CreateExecOptions::default()
    })
}

struct Program<'a> {
    docker: &'a Docker,
    exec: &'a str,
    terminal: bool,
}

impl Program<'_> {
    /// Does what the client says; gives how much input the program has had.
    async fn take<W: AsyncWrite + Unpin>(
        &self,
        message: ExecInput,
        input: &mut Option<W>,
    ) -> Option<usize> {
        match message {
            ExecInput::Start(_) => {}
            ExecInput::Stdin(data) => {
                if let Some(open) = input
                    && give(open, &data).await.is_err()
                {
                    *input = None;
                }
                return Some(data.len());
            }
            ExecInput::StdinEnd => {
                if let Some(mut open) = input.take() {
                    if self.terminal {
                        let _ = give(&mut open, END_OF_TRANSMISSION).await;
                        // Closed, it would take the output with it.
                        *input = Some(open);
                    } else {
                        let _ = open.shutdown().await;
                    }
                }
            }
            ExecInput::Signal(number) => {
                if let Ok(signal) = Signal::try_from(i32::from(number)) {
                    self.signal(signal).await;
                }
            }
            ExecInput::Resize(size) => resize(self.docker, self.exec, size).await,
        }
        None
    }

    /// To the program's process on this machine, if it still runs.
    async fn signal(&self, signal: Signal) {
        let Ok(state) = self.docker.inspect_exec(self.exec).await else {
            return;
        };
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
        if let (Some(true), Some(pid)) = (state.running, pid) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    async fn exit(&self) -> ExecExit {
        // The engine has no call that waits for it.
        loop {
            match self.docker.inspect_exec(self.exec).await {
                Ok(state) => {
                    if let (Some(false), Some(code)) = (state.running, state.exit_code) {
                        return ExecExit::Code(i32::try_from(code).unwrap_or(1));
                    }
                }
                Err(error) => {
                    tracing::debug!(error = plain(&error), "no exit code");
                    return ExecExit::Code(1);
                }
            }
            sleep(EXIT_PAUSE).await;
        }
    }
}

async fn give<W: AsyncWrite + Unpin>(input: &mut W, data: &[u8]) -> io::Result<()> {
    input.write_all(data).await?;
    input.flush().await
}

async fn resize(docker: &Docker, exec: &str, size: Size) {
    if size.rows == 0 || size.cols == 0 {
        return;
    }
    for _ in 0..RESIZE_TRIES {
        let options = ResizeExecOptions { height: size.rows, width: size.cols };
        if docker.resize_exec(exec, options).await.is_ok() {
            return;
        }
        sleep(RESIZE_PAUSE).await;
    }
}
