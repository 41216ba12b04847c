//! Keeps the user in a session across connections.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_agent_protocol::exec::ExecExit;
use kohakuriver_agent_protocol::session::{Attach, INPUT_WINDOW, SessionInput, SessionOutput};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::link::{Link, Lost};
use crate::context::Context;
use crate::error::CommandError;
use crate::escape::{Command, Keys};
use crate::reference::VpsRef;
use crate::ssh::shell_word;
use crate::tty::{self, Outlet, Raw};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Outages below this are not displayed.
const UNNOTICED: Duration = Duration::from_secs(2);
/// Saves and restores the window's title.
const PUSH_TITLE: &str = "\x1b[22;2t";
const POP_TITLE: &str = "\x1b[23;2t";
/// Resets the terminal modes that the session's programs may have set.
const SOBER: &str =
    "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b[?25h\x1b[m";
const FULL_SCREEN_ON: &[u8] = b"\x1b[?1049h";
/// Leaves the full screen; sent only if needed, because it moves the cursor.
const FULL_SCREEN_OFF: &str = "\x1b[?1049l";

/// The reason for leaving the session.
pub enum ExitReason {
    Ended(ExecExit),
    Detached(String),
    HungUp,
}

impl ExitReason {
    pub fn tell(self, context: &Context, vps: &VpsRef) -> Result<(), CommandError> {
        match self {
            Self::Ended(exit) if exit.code() == 0 => Ok(()),
            Self::Ended(exit) => {
                Err(CommandError::program(u8::try_from(exit.code() & 0xff).unwrap_or(1)))
            }
            Self::Detached(session) => {
                context.out.note("detached; the session keeps running");
                // The VPS chose the name, and the user copies this line into a shell.
                let session = shell_word(&session);
                context.out.hint(format!("kohakuriver connect {vps} --session {session}"));
                Ok(())
            }
            Self::HungUp => Ok(()),
        }
    }
}

/// The outcome of one connection.
enum Outcome {
    ExitReason(ExitReason),
    Lost,
    Refused(CommandError),
}

struct Stay {
    attach: Attach,
    keys: Keys,
    typed: mpsc::Receiver<Bytes>,
    resized: Signal,
    told_to_end: [Signal; 2],
    stdout: Outlet,
    sent: SentInput,
    attached: bool,
    /// Whether a full-screen program uses the terminal.
    full_screen: bool,
}

/// Stays in the session until the session, the user or the host ends it.
pub async fn stay(
    context: &Context,
    vps: &str,
    attach: Attach,
) -> Result<ExitReason, CommandError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| CommandError::request(format!("cannot listen for signals: {error}")))
    };
    let resized = listen(SignalKind::window_change())?;
    let told_to_end = [listen(SignalKind::hangup())?, listen(SignalKind::terminate())?];
    let mut link = Link::new(context.api.session_socket(vps).await?);
    let raw = Raw::enter().map_err(|error| CommandError::usage(format!("no terminal: {error}")))?;
    let mut stay = Stay {
        attach,
        keys: Keys::default(),
        typed: tty::read_input(),
        resized,
        told_to_end,
        stdout: Outlet::stdout(),
        sent: SentInput::default(),
        attached: false,
        full_screen: false,
    };
    let parting = loop {
        match stay.converse(&mut link).await {
            Outcome::ExitReason(parting) => {
                link.close().await;
                break Ok(parting);
            }
            Outcome::Refused(failure) => break Err(failure),
            Outcome::Lost => match stay.come_back(context, vps).await {
                Ok(Ok(again)) => link = again,
                Ok(Err(parting)) => break Ok(parting),
                Err(failure) => break Err(failure),
            },
        }
    };
    if stay.attached {
        let off = if stay.full_screen { FULL_SCREEN_OFF } else { "" };
        // A shell that ended has left its line; a running one is in the middle of it.
        let line = if matches!(parting, Ok(ExitReason::Ended(_))) { "" } else { "\r\n" };
        let _ = stay.stdout.write(format!("{off}{SOBER}{line}").into()).await;
    }
    let _ = stay.stdout.finish().await;
    drop(raw);
    parting
}

impl Stay {
    async fn converse(&mut self, link: &mut Link) -> Outcome {
        self.attach.size = tty::size();
        if link.send(&SessionInput::Attach(self.attach.clone())).await.is_err() {
            return Outcome::Lost;
        }
        let mut ready = false;
        loop {
            let room = ready && self.sent.has_room();
            let step = tokio::select! {
                message = link.receive() => match message {
                    Ok(message) => self.take(message, link, &mut ready).await,
                    Err(Lost) => return Outcome::Lost,
                },
                typed = self.typed.recv(), if room => self.pass_on(typed, link).await,
                _ = self.resized.recv() => {
                    link.send(&SessionInput::Resize(tty::size())).await.map(|()| None)
                }
                () = told(&mut self.told_to_end) => {
                    let _ = link.send(&SessionInput::Hangup).await;
                    Ok(Some(Outcome::ExitReason(ExitReason::HungUp)))
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(outcome)) => return outcome,
                Err(Lost) => return Outcome::Lost,
            }
        }
    }

    /// Handles a message of the session.
    async fn take(
        &mut self,
        message: SessionOutput,
        link: &mut Link,
        ready: &mut bool,
    ) -> Result<Option<Outcome>, Lost> {
        match message {
            SessionOutput::Attached(attached) => {
                self.attach.session = Some(attached.session);
                self.attach.existing = true;
                self.attach.output = Some(attached.output);
                (self.attached, *ready) = (true, true);
                for again in self.sent.rewind(attached.input) {
                    link.send(&again).await?;
                }
            }
            SessionOutput::Output(data) => {
                if let Some(position) = &mut self.attach.output {
                    *position += data.len() as u64;
                }
                self.notice_full_screen(&data);
                if self.stdout.write(data).await.is_err() {
                    return Ok(Some(Outcome::ExitReason(ExitReason::HungUp)));
                }
            }
            SessionOutput::Screen(picture) => {
                self.notice_full_screen(&picture);
                let _ = self.stdout.write(picture).await;
            }
            SessionOutput::Skipped(position) => self.attach.output = Some(position),
            SessionOutput::InputTaken(position) => self.sent.taken(position),
            SessionOutput::Ended(exit) => {
                return Ok(Some(Outcome::ExitReason(ExitReason::Ended(exit))));
            }
            SessionOutput::Failed(failed) => {
                return Ok(Some(Outcome::Refused(CommandError::request(failed.message))));
            }
            SessionOutput::List(_) => {}
        }
        Ok(None)
    }

    /// Detects full-screen mode. Programs switch in one write, so a chunk holds the whole sequence.
    fn notice_full_screen(&mut self, output: &[u8]) {
        let last = |what: &[u8]| output.windows(what.len()).rposition(|window| window == what);
        let (on, off) = (last(FULL_SCREEN_ON), last(FULL_SCREEN_OFF.as_bytes()));
        if on != off {
            self.full_screen = on > off;
        }
    }

    /// Forwards typed input, or runs the client command in it.
    async fn pass_on(
        &mut self,
        typed: Option<Bytes>,
        link: &mut Link,
    ) -> Result<Option<Outcome>, Lost> {
        let command = match typed {
            None => Some(Command::HangUp),
            Some(typed) => {
                let (passed, command) = self.keys.read(&typed);
                if !self.attach.read_only && !passed.is_empty() {
                    link.send(&self.sent.push(passed)).await?;
                }
                // Ctrl-C ends a read-only session.
                let enough = self.attach.read_only && typed.contains(&3);
                command.or(enough.then_some(Command::Detach))
            }
        };
        Ok(match command {
            None => None,
            Some(command) => {
                let parting = self.leave(command);
                if command == Command::HangUp {
                    link.send(&SessionInput::Hangup).await?;
                }
                Some(Outcome::ExitReason(parting))
            }
        })
    }

    fn leave(&self, command: Command) -> ExitReason {
        match command {
            Command::HangUp => ExitReason::HungUp,
            Command::Detach => {
                ExitReason::Detached(self.attach.session.clone().unwrap_or_default())
            }
        }
    }

    /// Reconnects until the host responds, the user leaves, or the session no longer exists.
    async fn come_back(
        &mut self,
        context: &Context,
        vps: &str,
    ) -> Result<Result<Link, ExitReason>, CommandError> {
        let lost_at = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut told_so = false;
        let result = loop {
            let attempt = async {
                sleep(pause).await;
                context.api.session_socket(vps).await
            };
            tokio::select! {
                socket = attempt => match socket {
                    Ok(socket) => break Ok(Ok(Link::new(socket))),
                    Err(failure) if failure.may_pass() => {
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                    Err(failure) => break Err(failure),
                },
                typed = self.typed.recv(), if self.sent.has_room() => {
                    let (passed, command) = match typed {
                        Some(typed) => self.keys.read(&typed),
                        None => (Bytes::new(), Some(Command::HangUp)),
                    };
                    if !self.attach.read_only && !passed.is_empty() {
                        // The size is sent after the reconnection.
                        let _ = self.sent.push(passed);
                    }
                    if let Some(command) = command {
                        break Ok(Err(self.leave(command)));
                    }
                }
                () = told(&mut self.told_to_end) => break Ok(Err(ExitReason::HungUp)),
            }
            if !told_so && lost_at.elapsed() > UNNOTICED {
                told_so = true;
                // The window's title is the only place outside the session's screen.
                let title = format!(
                    "{PUSH_TITLE}\x1b]2;connection lost, reconnecting (Enter ~. leaves)\x07"
                );
                let _ = self.stdout.write(title.into()).await;
            }
        };
        if told_so {
            let _ = self.stdout.write(Bytes::from_static(POP_TITLE.as_bytes())).await;
        }
        result
    }
}

async fn told(signals: &mut [Signal; 2]) {
    let [hangup, terminate] = signals;
    tokio::select! {
        _ = hangup.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Input in flight, retained until the session acknowledges it.
#[derive(Debug, Default)]
struct SentInput {
    /// Position counted from the first byte of input.
    end: u64,
    kept: VecDeque<Bytes>,
    bytes: usize,
}

impl SentInput {
    fn has_room(&self) -> bool {
        self.bytes < INPUT_WINDOW
    }

    fn push(&mut self, data: Bytes) -> SessionInput {
        let position = self.end;
        self.end += data.len() as u64;
        self.bytes += data.len();
        self.kept.push_back(data.clone());
        SessionInput::Input { position, data }
    }

    fn taken(&mut self, position: u64) {
        while let Some(front) = self.kept.front_mut() {
            let start = self.end - self.bytes as u64;
            let done = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
            if done == 0 {
                return;
            }
            let part = front.split_to(done.min(front.len()));
            self.bytes -= part.len();
            if front.is_empty() {
                self.kept.pop_front();
            }
        }
    }

    /// Returns the input to send again to a session that has acknowledged everything before `position`.
    fn rewind(&mut self, position: u64) -> Vec<SessionInput> {
        self.taken(position);
        let mut start = self.end - self.bytes as u64;
        let mut again = Vec::with_capacity(self.kept.len());
        for data in &self.kept {
            again.push(SessionInput::Input { position: start, data: data.clone() });
            start += data.len() as u64;
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_unacknowledged_input_is_sent_again() {
        let mut sent = SentInput::default();
        sent.push(Bytes::from_static(b"abc"));
        sent.push(Bytes::from_static(b"defg"));
        sent.taken(1);
        let data = |again: Vec<SessionInput>| -> Vec<(u64, Bytes)> {
            let part = |input| {
                let SessionInput::Input { position, data } = input else {
                    panic!("only input is sent again");
                };
                (position, data)
            };
            again.into_iter().map(part).collect()
        };
        assert_eq!(data(sent.rewind(4)), [(4, Bytes::from_static(b"efg"))]);
        sent.push(Bytes::from_static(b"h"));
        assert_eq!(data(sent.rewind(4)).len(), 2);
        assert!(sent.rewind(8).is_empty());
        assert!(sent.has_room());
    }
}
