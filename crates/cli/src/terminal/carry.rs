//! Connects a program's streams in a VPS with this terminal, until the program ends.
//!
//! A console of a virtual machine is connected the same way. It does not end while the VM runs, so
//! the client's own escape keys leave it.

use std::future::pending;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::exec::{ExecInput, ExecOutput, ExecStart, STDIN_WINDOW};
use kohakuriver_agent_protocol::{FrameError, FrameReader, MAX_PAYLOAD, write};
use tokio::io::{AsyncWriteExt, split};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::api::Stream;
use crate::error::CommandError;
use crate::escape::Keys;
use crate::tty::{self, Outlet, Raw};
use crate::ui::{one_line, printable};

/// Time in which a second Ctrl-C makes the client disconnect.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// The kind of the remote end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    /// A program, which gets the client's signals and a hangup when the client disconnects.
    Program,
    /// A console, which continues without the client.
    Console,
}

impl Far {
    /// Describes the effect of the client's disconnection.
    fn without_us(self) -> &'static str {
        match self {
            Self::Program => "the program was hung up",
            Self::Console => "the virtual machine keeps running",
        }
    }
}

/// Starts the program and connects its streams. Its exit code becomes the client's.
pub async fn carry(stream: Stream, start: ExecStart, far: Far) -> Result<(), CommandError> {
    let (read, mut to_program) = split(stream);
    let mut reader = FrameReader::<_, ExecOutput>::new(read, &[]);
    let has_terminal = start.tty.is_some();
    let lost = |error: &dyn std::fmt::Display| {
        CommandError::unreachable(format!("the connection to the VPS was lost: {error}"))
            .hint(far.without_us())
    };
    // Before the program starts, so that no signal for it is missed.
    let mut signals = Signals::listen(has_terminal, far)
        .map_err(|error| CommandError::request(format!("cannot listen for signals: {error}")))?;
    write(&mut to_program, &ExecInput::Start(start))
        .await
        .map_err(|error| too_long(&error).unwrap_or_else(|| lost(&error)))?;
    let raw = if has_terminal { Raw::enter().ok() } else { None };
    let (stdout, stderr) = (Outlet::stdout(), Outlet::stderr());
    // Piped input can hold any bytes; escape keys are only typed at a terminal.
    let keys = (far == Far::Console && has_terminal).then(Keys::default);
    let mut input = Input::new(tty::read_input(), keys);

    let end = loop {
        let message = tokio::select! {
            message = reader.next() => match message {
                Ok(Some(ExecOutput::Stdout(data))) => {
                    if stdout.write(data).await.is_err() {
                        // The reason is printed below.
                        break Ok(0);
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
                    let said = one_line(&printable(&failed.message));
                    tty::write_now(&format!("kohakuriver: {said}\n"));
                    return Err(CommandError::program(failed.code));
                }
                Ok(None) => break Err(lost(&"the stream ended without an exit code")),
                Err(error) => break Err(lost(&error)),
            },
            message = input.next() => match message {
                Some(message) => message,
                None => break Ok(0),
            },
            message = signals.next() => match message {
                Some(message) => message,
                None => break Err(CommandError::interrupted(format!("interrupted; {}", far.without_us()))),
            },
        };
        if let Err(error) = write(&mut to_program, &message).await {
            // Output from before its end may still arrive.
            tracing::debug!(%error, "the program's input is closed");
            input.source = None;
        }
    };
    let _ = to_program.shutdown().await;
    let written = stdout.finish().await;
    let _ = stderr.finish().await;
    drop(raw);
    match end? {
        0 => written.map_err(|error| CommandError::output(&error)),
        code => Err(CommandError::program(u8::try_from(code & 0xff).unwrap_or(1))),
    }
}

/// Builds the error for a command that is too long to send.
fn too_long(error: &std::io::Error) -> Option<CommandError> {
    let frame = error.get_ref()?.downcast_ref::<FrameError>()?;
    let FrameError::Oversized(bytes) = frame else { return None };
    let message = format!(
        "the command with its arguments and variables takes {bytes} bytes, of at most {MAX_PAYLOAD}"
    );
    Some(
        CommandError::usage(message).hint(
            "pass the data on standard input, or in a file: kohakuriver vps cp FILE VPS:/tmp/",
        ),
    )
}

/// Standard input, limited by the program's window.
struct Input {
    source: Option<mpsc::Receiver<Bytes>>,
    room: usize,
    waiting: BytesMut,
    /// The client's escape keys, if they are enabled.
    keys: Option<Keys>,
    has_left: bool,
}

impl Input {
    fn new(source: mpsc::Receiver<Bytes>, keys: Option<Keys>) -> Self {
        let waiting = BytesMut::new();
        Self { source: Some(source), room: STDIN_WINDOW, waiting, keys, has_left: false }
    }

    /// Returns the next input, or `None` if the user has left.
    async fn next(&mut self) -> Option<ExecInput> {
        loop {
            let ready = self.waiting.len().min(self.room);
            if ready > 0 {
                self.room -= ready;
                return Some(ExecInput::Stdin(self.waiting.split_to(ready).freeze()));
            }
            if self.has_left {
                return None;
            }
            // A VM that hangs accepts no input, but the user must still be able to leave.
            let may_read = self.waiting.is_empty() && self.room > 0 || self.keys.is_some();
            let Some(source) = self.source.as_mut().filter(|_| may_read) else {
                return pending().await;
            };
            let Some(data) = source.recv().await else {
                self.source = None;
                return Some(ExecInput::StdinEnd);
            };
            match &mut self.keys {
                None => self.waiting = data.into(),
                Some(keys) => {
                    let (passed, command) = keys.read(&data);
                    self.has_left = command.is_some();
                    // More than this is not typed input.
                    if self.waiting.len() < STDIN_WINDOW {
                        self.waiting.extend_from_slice(&passed);
                    }
                }
            }
        }
    }
}

/// The signals to forward to the program.
struct Signals {
    passed: Vec<(SignalKind, Signal)>,
    resized: Option<Signal>,
    interrupted: Option<Instant>,
    far: Far,
}

impl Signals {
    fn listen(has_terminal: bool, far: Far) -> std::io::Result<Self> {
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
            far,
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
        if self.far == Far::Console {
            return None;
        }
        if kind == SignalKind::interrupt() {
            let again = self.interrupted.replace(Instant::now());
            if again.is_some_and(|before| before.elapsed() < IMPATIENCE) {
                return None;
            }
        }
        Some(ExecInput::Signal(u8::try_from(kind.as_raw_value()).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn typed(pieces: &[&'static str], keys: Option<Keys>) -> (String, bool) {
        let (sender, source) = mpsc::channel(8);
        for piece in pieces {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        drop(sender);
        let mut input = Input::new(source, keys);
        let mut passed = String::new();
        loop {
            match input.next().await {
                Some(ExecInput::Stdin(data)) => {
                    passed.push_str(std::str::from_utf8(&data).unwrap());
                }
                Some(ExecInput::StdinEnd) => return (passed, false),
                None => return (passed, true),
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn escape_keys_leave_a_console_but_not_a_program() {
        let pieces = ["root\r", "~", "d", "more"];
        assert_eq!(typed(&pieces, Some(Keys::default())).await, ("root\r".to_owned(), true));
        assert_eq!(typed(&pieces, None).await, ("root\r~dmore".to_owned(), false));
    }

    #[tokio::test]
    async fn too_long_command_is_refused_with_the_bound() {
        let word = "x".repeat(MAX_PAYLOAD);
        let start = ExecStart { argv: vec![word.as_str().into()], ..ExecStart::default() };
        let sent = write(&mut tokio::io::sink(), &ExecInput::Start(start)).await;
        let failure = format!("{:?}", too_long(&sent.unwrap_err()).unwrap());
        assert!(failure.contains("of at most 1048576"), "{failure}");
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(too_long(&gone).is_none());
    }

    #[tokio::test]
    async fn console_that_accepts_no_input_can_be_left() {
        let (sender, source) = mpsc::channel(8);
        let mut input = Input::new(source, Some(Keys::default()));
        input.room = 0;
        sender.send(Bytes::from_static(b"help\r~.")).await.unwrap();
        assert_eq!(input.next().await, None);
    }
}
