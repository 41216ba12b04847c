//! A client's connection to a session.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kohakuriver_agent_protocol::exec::{ExecExit, ExecFailed, Size};
use kohakuriver_agent_protocol::session::{Attach, Attached, SessionInput, SessionOutput};
use kohakuriver_agent_protocol::{FrameReader, finish, write};
use kohakuriver_net::{Socket, SocketReader, SocketWriter};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answers::{Divider, Kind};
use super::live::{Next, Session};
use super::{Sessions, check_name, end, end_if_forgotten};
use crate::launch::failed;

/// The client's first message follows its request at once.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
/// Of a screen with all above it, which in the worst case has many megabytes.
const PICTURE_PIECE: usize = 64 * 1024;
/// How long an Escape may be the beginning of a terminal's answer: the rest of it is under way.
const ESCAPE_WAIT: Duration = Duration::from_millis(50);

type Reader = FrameReader<SocketReader, SessionInput>;
type Writer = tokio::sync::Mutex<SocketWriter>;

/// Serves whatever the client's first message asks for.
pub(crate) async fn serve(stream: Socket, sessions: &Arc<Sessions>) {
    let (read, write_half) = stream.into_split();
    let mut reader = Reader::new(read, &[]);
    let writer = Writer::new(write_half);
    let first = match timeout(FIRST_DEADLINE, reader.next()).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return say_last(&mut reader, &writer, refused(&error.to_string())).await,
    };
    match first {
        SessionInput::Attach(attach) => {
            if let Err(failed) = take_part(sessions, attach, &mut reader, &writer).await {
                say_last(&mut reader, &writer, SessionOutput::Failed(failed)).await;
            }
        }
        SessionInput::List => {
            say_last(&mut reader, &writer, SessionOutput::List(sessions.list())).await;
        }
        SessionInput::End(name) => {
            let answer = match check_name(&name).map(|()| sessions.find(&name)) {
                Ok(Some(session)) => {
                    end(&session);
                    SessionOutput::List(sessions.list())
                }
                Ok(None) => {
                    SessionOutput::Failed(failed(1, format!("there is no session '{name}'")))
                }
                Err(failed) => SessionOutput::Failed(failed),
            };
            say_last(&mut reader, &writer, answer).await;
        }
        SessionInput::Input { .. } | SessionInput::Resize(_) | SessionInput::Hangup => {
            say_last(&mut reader, &writer, refused("the first message must name a session")).await;
        }
    }
}

fn refused(why: &str) -> SessionOutput {
    SessionOutput::Failed(failed(126, why.to_owned()))
}

async fn say(writer: &Writer, message: SessionOutput) -> io::Result<()> {
    write(&mut *writer.lock().await, &message).await
}

/// Shows a picture, which may be larger than a message.
async fn show(writer: &Writer, picture: Vec<u8>) -> io::Result<()> {
    let mut picture = Bytes::from(picture);
    while !picture.is_empty() {
        let piece = picture.split_to(picture.len().min(PICTURE_PIECE));
        say(writer, SessionOutput::Screen(piece)).await?;
    }
    Ok(())
}

async fn say_taken(taken: io::Result<u64>, writer: &Writer) -> io::Result<()> {
    say(writer, SessionOutput::InputTaken(taken?)).await
}

async fn say_last(reader: &mut Reader, writer: &Writer, message: SessionOutput) {
    finish(reader, &mut *writer.lock().await, &message).await;
}

/// How a client's part in a session came to its end.
enum ExitReason {
    /// The connection is gone; the client may come back.
    Lost,
    /// Its person is gone for good.
    HungUp,
    Ended(ExecExit),
    /// Another connection of the same client has taken over.
    Replaced,
}

async fn take_part(
    sessions: &Sessions,
    attach: Attach,
    reader: &mut Reader,
    writer: &Writer,
) -> Result<(), ExecFailed> {
    let (session, created) = sessions.find_or_start(&attach)?;
    if !attach.read_only {
        session.resize(attach.size);
    }
    let replaced = CancellationToken::new();
    let (position, picture, input) = session.join(&attach, replaced.clone());
    let greeting = SessionOutput::Attached(Attached {
        session: session.name.clone(),
        output: position,
        input,
        created,
    });
    let parting = tokio::select! {
        biased;
        () = replaced.cancelled() => ExitReason::Replaced,
        parting = async {
            let mut greeted = say(writer, greeting).await;
            if let (Ok(()), Some(picture)) = (&greeted, picture) {
                greeted = show(writer, picture).await;
            }
            match greeted {
                Ok(()) => converse(&session, &attach, position, reader, writer).await,
                Err(_) => ExitReason::Lost,
            }
        } => parting,
    };
    session.leave(attach.client, &replaced);
    let alone = session.clients() == 0;
    match parting {
        ExitReason::Ended(exit) => say_last(reader, writer, SessionOutput::Ended(exit)).await,
        ExitReason::HungUp if alone && !session.named => end(&session),
        ExitReason::Lost if alone && attach.ephemeral => end(&session),
        ExitReason::Lost | ExitReason::HungUp if alone && !session.named => {
            end_if_forgotten(&session);
        }
        ExitReason::Lost | ExitReason::HungUp | ExitReason::Replaced => {}
    }
    Ok(())
}

async fn converse(
    session: &Arc<Session>,
    attach: &Attach,
    position: u64,
    reader: &mut Reader,
    writer: &Writer,
) -> ExitReason {
    let outward = async {
        let mut position = position;
        let mut news = session.news();
        loop {
            news.mark_unchanged();
            let sent = match session.next(attach.client, &mut position) {
                Next::Output(output) => say(writer, SessionOutput::Output(output.into())).await,
                Next::Skipped(to, picture) => {
                    let told = say(writer, SessionOutput::Skipped(to)).await;
                    match told {
                        Ok(()) => show(writer, picture).await,
                        Err(_) => told,
                    }
                }
                Next::Ended(exit) => return ExitReason::Ended(exit),
                Next::Wait => {
                    if news.changed().await.is_err() {
                        return ExitReason::Lost;
                    }
                    Ok(())
                }
            };
            if sent.is_err() {
                return ExitReason::Lost;
            }
        }
    };
    let inward = async {
        let (client, size) = (attach.client, attach.size);
        let mut typist = Typist { session, client, size, divider: Divider::default() };
        loop {
            let message = if typist.divider.begun() == 0 {
                reader.next().await
            } else if let Ok(message) = timeout(ESCAPE_WAIT, reader.next()).await {
                message
            } else {
                let taken = typist.give_up().await;
                if say_taken(taken, writer).await.is_err() {
                    return ExitReason::Lost;
                }
                continue;
            };
            match message {
                Ok(Some(SessionInput::Input { position, data })) if !attach.read_only => {
                    let taken = typist.take(position, data).await;
                    if say_taken(taken, writer).await.is_err() {
                        return ExitReason::Lost;
                    }
                }
                Ok(Some(SessionInput::Resize(new))) if !attach.read_only => {
                    typist.size = new;
                    session.take_control(client, new);
                }
                Ok(Some(SessionInput::Hangup)) => return ExitReason::HungUp,
                Ok(Some(SessionInput::Input { .. } | SessionInput::Resize(_))) => {}
                Ok(Some(SessionInput::Attach(_) | SessionInput::List | SessionInput::End(_)))
                | Ok(None)
                | Err(_) => return ExitReason::Lost,
            }
        }
    };
    tokio::select! {
        parting = outward => parting,
        parting = inward => parting,
    }
}

/// A client's input on its way to the program.
struct Typist<'a> {
    session: &'a Session,
    client: u64,
    size: Size,
    divider: Divider,
}

impl Typist<'_> {
    /// Gives the program what it has not had yet of the client's input.
    async fn take(&mut self, position: u64, mut data: Bytes) -> io::Result<u64> {
        let taken = self.session.input_of(self.client) + self.divider.begun() as u64;
        // A gap: what came before was never here, and what comes after makes no sense without it.
        let known = taken
            .checked_sub(position)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        data.advance(data.len().min(usize::try_from(known).unwrap_or(usize::MAX)));
        if self.divider.begun() == 0 && self.session.is_in_control(self.client) {
            // Whatever it is, it is for the program, and need not wait for its end.
            self.write(&data).await?;
        } else {
            for (kind, part) in self.divider.divide(&data) {
                self.pass_on(kind, &part).await?;
            }
        }
        Ok(self.session.input_of(self.client))
    }

    /// Treats an unfinished reply of the terminal as typed input.
    async fn give_up(&mut self) -> io::Result<u64> {
        let typed = self.divider.give_up();
        self.pass_on(Kind::Typed, &typed).await?;
        Ok(self.session.input_of(self.client))
    }

    /// The terminal typed in last is in control; only its answers reach the program.
    async fn pass_on(&self, kind: Kind, part: &[u8]) -> io::Result<()> {
        if kind == Kind::Typed {
            self.session.take_control(self.client, self.size);
        }
        if self.session.is_in_control(self.client) {
            return self.write(part).await;
        }
        self.session.took_input(self.client, part.len());
        Ok(())
    }

    async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        let mut master = self.session.master.clone();
        while !data.is_empty() {
            let written = master.write(data).await?;
            // Nothing may come between the write and this, or a client that comes back types twice.
            self.session.took_input(self.client, written);
            data.advance(written);
        }
        Ok(())
    }
}
