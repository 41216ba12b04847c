//! A copy of files and trees, as a pipeline of stages.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kohakuriver_agent_protocol::files::Kind;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;

use super::choose::{self, Questions};
use super::item::{Choice, Item, Part};
use super::place::Destination;
use super::remote::{Connection, Remote};
use super::report::Report;
use super::target::{Side, Target};
use super::{local, remote};
use crate::context::Context;
use crate::error::CommandError;

/// Items queued between two stages; the total is known this far ahead.
const ITEMS: usize = 4096;
/// Pieces of content queued between two stages, at most 256 KiB each.
const PARTS: usize = 32;

pub async fn run(
    context: &Context,
    source: &Destination,
    target: &Destination,
    resume: bool,
    report: &Arc<Report>,
) -> Result<(), CommandError> {
    let (mut from, source_path) = open(context, source).await?;
    let (mut to, target_path) = open(context, target).await?;
    let kind = from.kind(&source_path).await??;
    let is_directory = kind == Kind::Directory;
    let origin = from.origin(&source_path);
    let settled = to.settle(&source_path, &origin, is_directory, &target_path).await?;
    refuse_into_itself(&from, &to, &source_path, &settled.root)?;
    if is_directory {
        to.begin(&settled, &origin).await?;
    }
    let shown = source.shown();
    let work = copy(&mut from, &mut to, &source_path, &settled, resume, report);
    tokio::select! {
        result = work => result?,
        () = report.show(context.out, &shown) => {}
    }
    to.finish(&settled, report.is_whole()).await
}

async fn open<'a>(
    context: &'a Context,
    place: &Destination,
) -> Result<(Side<'a>, PathBuf), CommandError> {
    match place {
        Destination::Remote { vps, path } => {
            let remote = Remote::open(context, vps).await?;
            Ok((Side::Remote(Box::new(remote)), path.clone()))
        }
        Destination::Local(path) => Ok((Side::Local, path.clone())),
        Destination::Stdio => Err(CommandError::usage("- has no name")),
    }
}

fn refuse_into_itself(
    from: &Side<'_>,
    to: &Side<'_>,
    source: &Path,
    root: &Path,
) -> Result<(), CommandError> {
    let (Side::Remote(from), Side::Remote(to)) = (from, to) else {
        return Ok(());
    };
    if from.is_same(to) && root.starts_with(source) {
        return Err(CommandError::usage("a directory cannot be copied into itself"));
    }
    Ok(())
}

async fn copy(
    from: &mut Side<'_>,
    to: &mut Side<'_>,
    source: &Path,
    target: &Target,
    resume: bool,
    report: &Arc<Report>,
) -> Result<(), CommandError> {
    let (item_sender, items) = channel(ITEMS);
    let (choice_sender, choices) = channel(ITEMS);
    let (part_sender, parts) = channel(PARTS);
    let mut reading = another(from).await?;
    let mut writing = another(to).await?;
    let root = target.root.as_path();
    // A missing file may have a partial file beside it; a missing tree holds nothing to compare.
    let is_new_tree = target.fresh && target.is_tree;
    let questions = Questions {
        present: resume && !is_new_tree,
        links: matches!(from, Side::Remote(_)) && !is_new_tree,
    };
    let (from_name, to_name) = (name(from), name(to));
    tokio::try_join!(
        list(from, source, report, item_sender),
        pick(to, root, questions, report, items, choice_sender),
        read(reading.as_mut(), (&from_name, source), report, choices, part_sender),
        write(writing.as_mut(), (&to_name, root), report, parts),
    )?;
    Ok(())
}

async fn another(side: &Side<'_>) -> Result<Option<Connection>, CommandError> {
    match side {
        Side::Local => Ok(None),
        Side::Remote(remote) => Ok(Some(remote.another().await?)),
    }
}

fn name(side: &Side<'_>) -> String {
    match side {
        Side::Local => String::new(),
        Side::Remote(remote) => remote.name.clone(),
    }
}

async fn list(
    from: &mut Side<'_>,
    source: &Path,
    report: &Arc<Report>,
    items: Sender<Item>,
) -> Result<(), CommandError> {
    match from {
        Side::Remote(from) => remote::list(&mut from.talk, &from.name, source, report, items).await,
        Side::Local => {
            let (source, report) = (source.to_owned(), report.clone());
            in_thread(move || local::list(&source, &report, &items)).await
        }
    }
}

async fn pick(
    to: &mut Side<'_>,
    root: &Path,
    questions: Questions,
    report: &Report,
    items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), CommandError> {
    match to {
        // The local writer follows no symlinks.
        Side::Local if !questions.present => choose::all(items, choices).await,
        Side::Remote(_) if !questions.present && !questions.links => {
            choose::all(items, choices).await
        }
        Side::Local => choose::by_local(root, report, items, choices).await,
        Side::Remote(to) => {
            let there = (to.name.as_str(), root);
            choose::by_remote(&mut to.talk, there, questions, report, items, choices).await
        }
    }
}

async fn read(
    talk: Option<&mut Connection>,
    (name, source): (&str, &Path),
    report: &Arc<Report>,
    mut choices: Receiver<(Item, Choice)>,
    parts: Sender<Part>,
) -> Result<(), CommandError> {
    match talk {
        Some(talk) => remote::read(talk, name, source, report, choices, parts).await,
        None => {
            let (source, report) = (source.to_owned(), report.clone());
            in_thread(move || local::read(&source, &report, &mut choices, &parts)).await
        }
    }
}

async fn write(
    talk: Option<&mut Connection>,
    (name, root): (&str, &Path),
    report: &Arc<Report>,
    mut parts: Receiver<Part>,
) -> Result<(), CommandError> {
    match talk {
        Some(talk) => remote::write(talk, name, root, report, parts).await,
        None => {
            let (root, report) = (root.to_owned(), report.clone());
            in_thread(move || local::write(&root, &report, &mut parts)).await
        }
    }
}

/// Runs blocking file work on a thread, which ends when its queues are closed.
async fn in_thread(
    work: impl FnOnce() -> Result<(), CommandError> + Send + 'static,
) -> Result<(), CommandError> {
    spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(CommandError::request(format!("a stage of the copy failed: {error}")))
    })
}
