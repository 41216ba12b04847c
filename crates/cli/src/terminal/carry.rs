//! Carrying a program's streams between a VPS and this terminal, until it ends.

use std::future::pending;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kohakuriver_wire::exec::{ExecInput, ExecOutput, ExecStart, STDIN_WINDOW};
use kohakuriver_wire::{FrameReader, write};
use tokio::io::{AsyncWriteExt, split};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::api::Stream;
use crate::failure::Failure;
use crate::tty::{self, Outlet, Raw};

/// A second Ctrl-C within this, and the program is left to itself.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// Starts the program and stays with it. Its exit code becomes ours.
pub async fn carry(stream: Stream, start: ExecStart) -> Result<(), Failure> {
    let (read, mut to_program) = split(stream);
    let mut reader = FrameReader::<_, ExecOutput>::new(read, &[]);
    let has_terminal = start.tty.is_some();
    let lost = |error: &dyn std::fmt::Display| {
        Failure::unreachable(format!("the connection to the VPS was lost: {error}"))
            .hint("the program was hung up")
    };
    // Before the program can start: what it is to get must not be missed.
    let mut signals = Signals::listen(has_terminal)
        .map_err(|error| Failure::request(format!("cannot listen for signals: {error}")))?;
    write(&mut to_program, &ExecInput::Start(start)).await.map_err(|error| lost(&error))?;
    let raw = if has_terminal { Raw::enter().ok() } else { None };
    let (stdout, stderr) = (Outlet::stdout(), Outlet::stderr());
    let mut input =
        Input { source: Some(tty::read_input()), room: STDIN_WINDOW, waiting: Bytes::new() };

    let end = loop {
        let message = tokio::select! {
            message = reader.next() => match message {
                Ok(Some(ExecOutput::Stdout(data))) => {
                    if stdout.write(data).await.is_err() {
                        // Like any program whose reader has gone.
                        break Err(Failure::program(141));
                    }
                    continue;
                }
                Ok(Some(ExecOutput::Stderr(data))) => {
                    let _ = stderr.write(data).await;
                    continue;
                }
                Ok(Some(ExecOutput::StdinTaken(bytes))) => {
                    input.room += bytes as usize;
                    continue;
                }
                Ok(Some(ExecOutput::Exit(exit))) => break Ok(exit.code()),
                Ok(Some(ExecOutput::Failed(failed))) => {
                    drop(raw);
                    tty::write_now(&format!("kohakuriver: {}\n", crate::ui::printable(&failed.message)));
                    return Err(Failure::program(failed.code));
                }
                Ok(None) => break Err(lost(&"it ended without a word")),
                Err(error) => break Err(lost(&error)),
            },
            message = input.next() => message,
            message = signals.next() => match message {
                Some(message) => message,
                None => break Err(Failure::interrupted("interrupted twice; the program was hung up")),
            },
        };
        if let Err(error) = write(&mut to_program, &message).await {
            // What it said before it ended may still be on its way.
            tracing::debug!(%error, "the program takes no more");
            input.source = None;
        }
    };
    let _ = to_program.shutdown().await;
    let written = stdout.finish().await;
    let _ = stderr.finish().await;
    drop(raw);
    match end? {
        0 => written.map_err(|error| Failure::request(format!("output was lost: {error}"))),
        code => Err(Failure::program(u8::try_from(code & 0xff).unwrap_or(1))),
    }
}

/// Standard input, within the program's window.
struct Input {
    source: Option<mpsc::Receiver<Bytes>>,
    room: usize,
    waiting: Bytes,
}

impl Input {
    async fn next(&mut self) -> ExecInput {
        let Some(source) = &mut self.source else {
            return pending().await;
        };
        if self.room == 0 {
            return pending().await;
        }
        if self.waiting.is_empty() {
            match source.recv().await {
                Some(data) => self.waiting = data,
                None => {
                    self.source = None;
                    return ExecInput::StdinEnd;
                }
            }
        }
        let data = self.waiting.split_to(self.waiting.len().min(self.room));
        self.room -= data.len();
        ExecInput::Stdin(data)
    }
}

/// What the program should hear of.
struct Signals {
    passed: Vec<(SignalKind, Signal)>,
    resized: Option<Signal>,
    interrupted: Option<Instant>,
}

impl Signals {
    fn listen(has_terminal: bool) -> std::io::Result<Self> {
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let passed = kinds.into_iter().map(|kind| Ok((kind, signal(kind)?)));
        Ok(Self {
            passed: passed.collect::<std::io::Result<_>>()?,
            resized: if has_terminal { Some(signal(SignalKind::window_change())?) } else { None },
            interrupted: None,
        })
    }

    /// None: the person has had enough.
    async fn next(&mut self) -> Option<ExecInput> {
        let resized = async {
            match &mut self.resized {
                Some(signal) => signal.recv().await,
                None => pending().await,
            }
        };
        let passed = self.passed.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        let kind = tokio::select! {
            _ = resized => return Some(ExecInput::Resize(tty::size())),
            (kind, _, _) = futures_util::future::select_all(passed) => kind,
        };
        if kind == SignalKind::interrupt() {
            let again = self.interrupted.replace(Instant::now());
            if again.is_some_and(|before| before.elapsed() < IMPATIENCE) {
                return None;
            }
        }
        Some(ExecInput::Signal(u8::try_from(kind.as_raw_value()).unwrap_or_default()))
    }
}
