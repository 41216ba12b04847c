//! The remote side of a copy: files in a VPS.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use kohakuriver_agent_protocol::StreamTarget;
use kohakuriver_agent_protocol::files::{
    Answers, Ask, ClientError, Code, Entry, FilesInput, FilesOutput, Kind, Orders, Word, Write,
    split,
};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::item::{Choice, Item, Named, Part, What, is_partial};
use super::report::{Report, add};
use crate::api::Stream;
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::vps::vocabulary::{called, with_list_hint};

/// Limit of requests that have no reply yet.
pub const AHEAD: usize = 1024;
/// Upper bound, in bytes, of the marker file in an unfinished tree.
const SHORT: usize = 256;
/// Size in bytes below which a file is copied again rather than resumed: that is faster than the
/// bookkeeping.
pub const WORTH_RESUMING: u64 = 1024 * 1024;

/// A VPS and a connection to its file server.
#[derive(Debug)]
pub struct Remote<'a> {
    context: &'a Context,
    id: String,
    pub name: String,
    pub talk: Connection,
}

/// A stream of requests and replies.
#[derive(Debug)]
pub struct Connection {
    pub orders: Orders<WriteHalf<Stream>>,
    pub answers: Answers<ReadHalf<Stream>>,
}

impl Connection {
    pub async fn ask(&mut self, ask: Ask) -> Result<FilesOutput, ClientError> {
        self.orders.ask(ask).await?;
        self.orders.flush().await?;
        self.answers.next().await
    }
}

impl<'a> Remote<'a> {
    pub async fn open(context: &'a Context, vps: &VpsRef) -> Result<Self, CommandError> {
        let task = context.api.task_to_enter(vps.as_str()).await.map_err(with_list_hint)?;
        let talk = open(context, &task.task_id).await?;
        Ok(Self { context, id: task.task_id.clone(), name: called(&task).to_owned(), talk })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Opens another connection, so that queries and transfers do not wait for each other.
    pub async fn another(&self) -> Result<Connection, CommandError> {
        open(self.context, &self.id).await
    }

    /// Inspects a path, following symlinks. The inner error means that the path does not exist.
    pub async fn find(&mut self, path: &Path) -> Result<Result<Entry, CommandError>, CommandError> {
        let ask = Ask::Stat { path: word(path), follow: true };
        match self.talk.ask(ask).await.and_then(FilesOutput::found) {
            Ok(entry) => Ok(Ok(entry)),
            Err(ClientError::Failed(failed)) if failed.code == Code::NotFound => {
                Ok(Err(CommandError::request(format!("in VPS {}: {failed}", self.name))))
            }
            Err(error) => Err(lost(&self.name, error)),
        }
    }

    pub async fn act(&mut self, ask: Ask) -> Result<(), CommandError> {
        let done = self.talk.ask(ask).await.and_then(FilesOutput::done);
        done.map_err(|error| lost(&self.name, error))
    }

    /// Reads a file, if the path is a regular file below the bound.
    pub async fn short_text(&mut self, path: &Path) -> Result<Option<Vec<u8>>, CommandError> {
        if !self.find(path).await?.is_ok_and(|entry| entry.kind == Kind::File) {
            return Ok(None);
        }
        let limit = Some(SHORT as u64);
        let read = self.talk.ask(Ask::Read { path: word(path), offset: 0, limit }).await;
        read.and_then(FilesOutput::found).map_err(|error| lost(&self.name, error))?;
        let mut text = Vec::new();
        loop {
            let piece = self.talk.answers.next().await.and_then(FilesOutput::piece);
            match piece.map_err(|error| lost(&self.name, error))? {
                None => return Ok(Some(text)),
                // An agent that sends more than was requested is not trusted.
                Some(piece) if text.len() + piece.len() > SHORT => {
                    return Err(lost(&self.name, ClientError::Unexpected));
                }
                Some(piece) => text.extend_from_slice(&piece),
            }
        }
    }

    /// Writes a short file.
    pub async fn note(&mut self, path: &Path, text: &[u8]) -> Result<(), CommandError> {
        let Connection { orders, answers } = &mut self.talk;
        let written = async {
            orders.ask(Ask::Write(Write { resumable: false, ..order(path) })).await?;
            orders.data(bytes::Bytes::copy_from_slice(text)).await?;
            orders.send(&FilesInput::End).await?;
            orders.flush().await?;
            answers.next().await?.written()
        };
        written.await.map(drop).map_err(|error| lost(&self.name, error))
    }
}

async fn open(context: &Context, id: &str) -> Result<Connection, CommandError> {
    let stream = context.api.stream(id, &StreamTarget::Files).await?;
    let (orders, answers) = split(stream);
    Ok(Connection { orders, answers })
}

pub fn word(path: &Path) -> Word {
    Word::from(path.as_os_str())
}

/// Builds a write request with default options.
pub fn order(path: &Path) -> Write {
    Write {
        path: word(path),
        offset: 0,
        mode: None,
        mtime: None,
        size: None,
        create_parents: false,
        resumable: false,
        durable: false,
    }
}

/// Converts an error of the files protocol.
pub fn lost(name: &str, error: ClientError) -> CommandError {
    match error {
        ClientError::Failed(failed) => {
            let failure = CommandError::request(format!("in VPS {name}: {failed}"));
            match failed.code {
                Code::DiskFull => failure.hint(format!(
                    "free disk space in it (`kohakuriver ssh {name}`), then run the same command again"
                )),
                Code::Stale => failure.hint("run the same command again to copy this file from its start"),
                Code::NotFound
                | Code::Denied
                | Code::Exists
                | Code::IsDirectory
                | Code::NotDirectory
                | Code::Forbidden
                | Code::TooLarge
                | Code::Invalid
                | Code::Aborted
                | Code::Other => failure,
            }
        }
        error @ (ClientError::Stream(_)
        | ClientError::Ended
        | ClientError::Unexpected
        | ClientError::TooMuch) => {
            tracing::debug!(%error, "a files stream broke");
            CommandError::request(format!(
                "the connection to VPS {name} was lost during the copy"
            ))
            .hint(format!(
                "`kohakuriver vps status {name}` shows its state; run the same command again to resume"
            ))
        }
    }
}

/// Lists a tree.
pub async fn list(
    talk: &mut Connection,
    name: &str,
    root: &Path,
    report: &Report,
    items: Sender<Item>,
) -> Result<(), CommandError> {
    let mut named = Named::default();
    let mut message = talk.ask(Ask::Walk { path: word(root) }).await;
    loop {
        let message_now = message.map_err(|error| lost(name, error))?;
        let entries = if let FilesOutput::Missed(missed) = message_now {
            let path = super::item::path(missed.name).display().to_string();
            let why = format!("in VPS {name}: {}", missed.failed);
            // A rule forbids it, so another attempt would fail as well.
            if matches!(missed.failed.code, Code::Forbidden | Code::TooLarge) {
                report.leave_out(path, why);
            } else {
                report.fail(path, why);
            }
            Vec::new()
        } else if let FilesOutput::Entries(entries) = message_now {
            entries
        } else {
            return message_now.done().map_err(|error| lost(name, error));
        };
        for entry in entries {
            match Item::of(entry).and_then(|item| named.add(&item).map(|()| item)) {
                Ok(item) if is_partial(&item.way) => {}
                Ok(item) => {
                    if let What::File { size } = item.what {
                        add(&report.total, size);
                    }
                    if items.send(item).await.is_err() {
                        return Ok(());
                    }
                }
                Err(why) => report.leave_out(why.clone(), format!("in VPS {name}: {why}")),
            }
        }
        message = talk.answers.next().await;
    }
}

/// Reads the selected items.
pub async fn read(
    talk: &mut Connection,
    name: &str,
    root: &Path,
    report: &Report,
    mut choices: Receiver<(Item, Choice)>,
    parts: Sender<Part>,
) -> Result<(), CommandError> {
    let (asked, mut answered) = channel::<(Item, u64)>(AHEAD);
    let Connection { orders, answers } = talk;
    let broken = |error: std::io::Error| lost(name, error.into());
    let asking = async move {
        while let Some((item, choice)) = next(&mut choices, asked.capacity(), orders, name).await? {
            let offset = match choice {
                Choice::Skip => continue,
                Choice::Copy { offset } => offset,
            };
            if matches!(item.what, What::File { .. }) {
                let path = word(&item.under(root));
                let ask = Ask::Read { path, offset, limit: None };
                orders.ask(ask).await.map_err(broken)?;
            }
            if asked.send((item, offset)).await.is_err() {
                break;
            }
        }
        orders.flush().await.map_err(broken)
    };
    let reading = async {
        while let Some((item, offset)) = answered.recv().await {
            let sent = match item.what {
                What::Directory => parts.send(Part::Directory(item)).await,
                What::Link { .. } => parts.send(Part::Link(item)).await,
                What::File { size } => {
                    read_one(answers, name, report, item, size, offset, &parts).await?;
                    Ok(())
                }
            };
            if sent.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::try_join!(asking, reading).map(drop)
}

#[expect(clippy::too_many_arguments, reason = "one file with all that is known of it")]
async fn read_one(
    answers: &mut Answers<ReadHalf<Stream>>,
    name: &str,
    report: &Report,
    mut item: Item,
    mut size: u64,
    offset: u64,
    parts: &Sender<Part>,
) -> Result<(), CommandError> {
    let shown = item.way.display().to_string();
    match answers.next().await.and_then(FilesOutput::found) {
        Ok(entry) if (entry.size, entry.mtime) == (size, item.mtime) => {}
        // No byte of the old content was sent on, so the new one is used.
        Ok(entry) if offset == 0 => {
            (size, item.mtime, item.mode) = (entry.size, entry.mtime, entry.mode);
        }
        Ok(_) => {
            report.fail(shown.clone(), format!("{shown} changed while it was copied"));
            while answers
                .next()
                .await
                .and_then(FilesOutput::piece)
                .map_err(|e| lost(name, e))?
                .is_some()
            {}
            return Ok(());
        }
        Err(ClientError::Failed(failed)) => {
            report.fail(shown, format!("in VPS {name}: {failed}"));
            return Ok(());
        }
        Err(error) => return Err(lost(name, error)),
    }
    // The receiver ends early only with an error of its own; the rest of the stream is dropped.
    let _ = parts.send(Part::Begin { item, size, offset }).await;
    let mut left = size - offset.min(size);
    loop {
        match answers.next().await.and_then(FilesOutput::piece) {
            Ok(Some(data)) => {
                left = left.saturating_sub(data.len() as u64);
                if parts.send(Part::Data(data)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => {
                let whole = format!("{shown} became shorter while it was copied");
                let end = if left == 0 { Part::End } else { Part::Broken(whole) };
                let _ = parts.send(end).await;
                return Ok(());
            }
            Err(ClientError::Failed(failed)) => {
                let _ = parts.send(Part::Broken(format!("in VPS {name}: {failed}"))).await;
                return Ok(());
            }
            Err(error) => return Err(lost(name, error)),
        }
    }
}

/// Receives the next item. Flushes buffered requests before it waits; `capacity` is the number of
/// further replies that can be outstanding.
pub async fn next<T>(
    queue: &mut Receiver<T>,
    room: usize,
    orders: &mut Orders<WriteHalf<Stream>>,
    name: &str,
) -> Result<Option<T>, CommandError> {
    if room > 0 {
        match queue.try_recv() {
            Ok(next) => return Ok(Some(next)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Err(TryRecvError::Empty) => {}
        }
    }
    orders.flush().await.map_err(|error| lost(name, error.into()))?;
    Ok(queue.recv().await)
}

/// The request that a reply belongs to.
enum Expected {
    Directory(PathBuf),
    Link(PathBuf),
    File { way: PathBuf, resumed: bool, number: u64 },
}

/// Writes the parts that arrive.
pub async fn write(
    talk: &mut Connection,
    name: &str,
    root: &Path,
    report: &Report,
    mut parts: Receiver<Part>,
) -> Result<(), CommandError> {
    let (expect, mut expected) = channel::<Expected>(AHEAD);
    let Connection { orders, answers } = talk;
    // The file that has failed: its remaining data is not sent.
    let dead = Cell::new(0);
    let sending = async {
        let expect = expect;
        let mut number = 0;
        let broken = |error: std::io::Error| lost(name, error.into());
        while let Some(part) = next(&mut parts, expect.capacity(), orders, name).await? {
            let answer = match part {
                // The root exists by now.
                Part::Directory(item) if item.way.as_os_str().is_empty() => {
                    add(&report.directories, 1);
                    continue;
                }
                Part::Directory(item) => {
                    let path = word(&item.under(root));
                    let ask = Ask::Mkdir { path, parents: true, mode: Some(item.mode) };
                    orders.ask(ask).await.map_err(broken)?;
                    Expected::Directory(item.way)
                }
                Part::Link(item) => {
                    if let What::Link { target } = &item.what {
                        let (path, target) = (word(&item.under(root)), word(target));
                        orders.ask(Ask::Symlink { path, target }).await.map_err(broken)?;
                    }
                    Expected::Link(item.way)
                }
                Part::Begin { item, size, offset } => {
                    number += 1;
                    let resumable = size >= WORTH_RESUMING;
                    let write = Write {
                        offset,
                        mode: Some(item.mode),
                        mtime: Some(item.mtime),
                        size: Some(size),
                        resumable,
                        durable: resumable,
                        ..order(&item.under(root))
                    };
                    orders.ask(Ask::Write(write)).await.map_err(broken)?;
                    add(&report.spared, offset);
                    Expected::File { way: item.way, resumed: offset > 0, number }
                }
                Part::Data(data) => {
                    if dead.get() != number {
                        let length = data.len() as u64;
                        orders.data(data).await.map_err(broken)?;
                        add(&report.bytes, length);
                    }
                    continue;
                }
                Part::End => {
                    orders.send(&FilesInput::End).await.map_err(broken)?;
                    continue;
                }
                Part::Broken(why) => {
                    report.fail("", why);
                    orders.send(&FilesInput::Abort).await.map_err(broken)?;
                    continue;
                }
            };
            if expect.send(answer).await.is_err() {
                break;
            }
        }
        orders.flush().await.map_err(broken)
    };
    let hearing = async {
        while let Some(expected) = expected.recv().await {
            let answer = answers.next().await;
            let (counter, result, way) = match expected {
                Expected::Directory(way) => {
                    (&report.directories, answer.and_then(FilesOutput::done), way)
                }
                Expected::Link(way) => (&report.links, answer.and_then(FilesOutput::done), way),
                Expected::File { way, resumed, number } => {
                    let result = answer.and_then(FilesOutput::written).map(drop);
                    if result.is_err() {
                        dead.set(number);
                    } else if resumed {
                        add(&report.resumed, 1);
                    }
                    (&report.files, result, way)
                }
            };
            match result {
                Ok(()) => add(counter, 1),
                Err(ClientError::Failed(failed)) if failed.code == Code::Aborted => {}
                Err(ClientError::Failed(failed)) if failed.code != Code::DiskFull => {
                    report.fail(way.display().to_string(), format!("in VPS {name}: {failed}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    tokio::try_join!(sending, async { hearing.await.map_err(|error| lost(name, error)) }).map(drop)
}
