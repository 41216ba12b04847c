//! Copies from standard input and to standard output.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kohakuriver_agent_protocol::files::{Ask, CHUNK, FilesInput, FilesOutput, Kind, Write};
use tokio::sync::mpsc::channel;
use tokio::task::spawn_blocking;

use super::remote::{Connection, Remote, lost, order, word};
use super::report::{Report, add};
use crate::context::Context;
use crate::error::CommandError;
use crate::reference::VpsRef;
use crate::stdout;

const PIECES: usize = 8;

/// Writes standard input to a file, which appears once the input has ended.
pub async fn from_stdin(
    context: &Context,
    vps: &VpsRef,
    path: &Path,
    report: &Arc<Report>,
) -> Result<(), CommandError> {
    let mut remote = Remote::open(context, vps).await?;
    if let Ok(entry) = remote.find(path).await?
        && entry.kind == Kind::Directory
    {
        return Err(CommandError::usage(format!("{} is a directory", path.display()))
            .hint("name the file: standard input has no name"));
    }
    let (sender, mut pieces) = channel::<io::Result<Bytes>>(PIECES);
    // Not joined: a read from a terminal cannot be cancelled.
    let _reading = spawn_blocking(move || {
        loop {
            let mut buffer = vec![0; CHUNK];
            let piece = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    buffer.truncate(count);
                    Ok(Bytes::from(buffer))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    let Remote { name, talk: Connection { orders, answers }, .. } = &mut remote;
    let work = async {
        let broken = |error: io::Error| lost(name, error.into());
        let write = Write { durable: true, ..order(path) };
        orders.ask(Ask::Write(write)).await.map_err(broken)?;
        orders.flush().await.map_err(broken)?;
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                // Before the end, every reply is an error.
                answer = answers.next() => {
                    let error = answer.and_then(FilesOutput::done).err();
                    let error = error.unwrap_or(kohakuriver_agent_protocol::files::ClientError::Unexpected);
                    return Err(lost(name, error));
                }
            };
            match piece {
                Some(Ok(data)) => {
                    let length = data.len() as u64;
                    orders.data(data).await.map_err(broken)?;
                    add(&report.bytes, length);
                }
                Some(Err(error)) => {
                    return Err(CommandError::request(format!(
                        "cannot read standard input: {error}"
                    )));
                }
                None => break,
            }
        }
        orders.send(&FilesInput::End).await.map_err(broken)?;
        orders.flush().await.map_err(broken)?;
        let written = answers.next().await.and_then(FilesOutput::written);
        written.map_err(|error| lost(name, error))?;
        add(&report.files, 1);
        Ok(())
    };
    tokio::select! {
        result = work => result,
        () = report.show(context.out, "-") => Ok(()),
    }
}

/// Writes a file to standard output.
pub async fn to_stdout(
    context: &Context,
    vps: &VpsRef,
    path: &Path,
    report: &Arc<Report>,
) -> Result<(), CommandError> {
    let Remote { name, talk: Connection { orders, answers }, .. } =
        &mut Remote::open(context, vps).await?;
    orders
        .ask(Ask::Read { path: word(path), offset: 0, limit: None })
        .await
        .map_err(|error| lost(name, error.into()))?;
    orders.flush().await.map_err(|error| lost(name, error.into()))?;
    let head = answers.next().await.and_then(FilesOutput::found);
    let mut left = head.map_err(|error| lost(name, error))?.size;
    loop {
        let piece = answers.next().await.and_then(FilesOutput::piece);
        let Some(data) = piece.map_err(|error| lost(name, error))? else {
            break;
        };
        stdout::write(&data).map_err(|error| CommandError::output(&error))?;
        left = left.saturating_sub(data.len() as u64);
        add(&report.bytes, data.len() as u64);
    }
    if left > 0 {
        let text = format!("{} became shorter while it was read", path.display());
        return Err(CommandError::request(text));
    }
    Ok(())
}
