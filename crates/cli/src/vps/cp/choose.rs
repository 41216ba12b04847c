//! Selection of the source's items that the target lacks.

use std::collections::HashSet;
use std::path::Path;

use kohakuriver_agent_protocol::files::{Ask, ClientError, FilesOutput, Kind};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::item::{Choice, Item, What, choose};
use super::local;
use super::remote::{AHEAD, Connection, lost, next, word};
use super::report::{Report, add};
use crate::error::CommandError;

/// Selects every item: the target did not exist, or all files are to be copied again.
pub async fn all(
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), CommandError> {
    while let Some(item) = items.recv().await {
        if choices.send((item, Choice::Copy { offset: 0 })).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Selects by the files on this computer.
pub async fn by_local(
    root: &Path,
    report: &Report,
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), CommandError> {
    while let Some(item) = items.recv().await {
        let choice = match item.what {
            What::File { size } => {
                let (there, partial) = local::probe(&item.under(root));
                choose(size, item.mtime, there, partial)
            }
            What::Directory | What::Link { .. } => Choice::Copy { offset: 0 },
        };
        count(report, &item, &choice);
        if choices.send((item, choice)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The queries to make about the target.
#[derive(Clone, Copy, Debug)]
pub struct Questions {
    /// Whether a file exists already.
    pub present: bool,
    /// Whether a symlink stands at a path: another VPS that supplies the names may have put it there
    /// with an earlier copy, and the agent would write through it.
    pub links: bool,
}

/// Selects by the files in a VPS; queries are sent ahead of their replies.
pub async fn by_remote(
    talk: &mut Connection,
    (name, root): (&str, &Path),
    questions: Questions,
    report: &Report,
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), CommandError> {
    let (asked, mut answered) = channel::<Item>(AHEAD);
    let Connection { orders, answers } = talk;
    let about_link = |item: &Item| questions.links && !item.way.as_os_str().is_empty();
    let about_file = |item: &Item| questions.present && matches!(item.what, What::File { .. });
    let asking = async move {
        let broken = |error: std::io::Error| lost(name, error.into());
        while let Some(item) = next(&mut items, asked.capacity(), orders, name).await? {
            let path = word(&item.under(root));
            if about_link(&item) {
                let ask = Ask::Stat { path: path.clone(), follow: false };
                orders.ask(ask).await.map_err(broken)?;
            }
            if about_file(&item) {
                orders.ask(Ask::Probe { path }).await.map_err(broken)?;
            }
            if asked.send(item).await.is_err() {
                break;
            }
        }
        orders.flush().await.map_err(broken)
    };
    let hearing = async {
        let mut barred = HashSet::new();
        while let Some(item) = answered.recv().await {
            let is_link = match about_link(&item) {
                false => false,
                true => match answers.next().await.and_then(FilesOutput::found) {
                    Ok(entry) => entry.kind == Kind::Symlink,
                    // The path does not exist, or the write fails with the same error.
                    Err(ClientError::Failed(_)) => false,
                    Err(error) => return Err(lost(name, error)),
                },
            };
            let choice = match item.what {
                What::File { size } if about_file(&item) => {
                    match answers.next().await.and_then(FilesOutput::probed) {
                        Ok(probed) => {
                            let there = probed.entry.filter(|entry| entry.kind == Kind::File);
                            let there = there.map(|entry| (entry.size, entry.mtime));
                            choose(size, item.mtime, there, probed.partial)
                        }
                        // The write fails with the same error, and failures are counted there.
                        Err(ClientError::Failed(_)) => Choice::Copy { offset: 0 },
                        Err(error) => return Err(lost(name, error)),
                    }
                }
                What::File { .. } | What::Directory | What::Link { .. } => {
                    Choice::Copy { offset: 0 }
                }
            };
            let behind = item.way.parent().is_some_and(|parent| barred.contains(parent));
            if behind || is_link && !matches!(item.what, What::Link { .. }) {
                if !behind {
                    let shown = item.under(root).display().to_string();
                    let why = format!(
                        "in VPS {name}: {shown} is a symlink; files of another VPS are not written through symlinks"
                    );
                    report.fail(shown, why);
                }
                barred.insert(item.way);
                continue;
            }
            count(report, &item, &choice);
            if choices.send((item, choice)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::try_join!(asking, hearing).map(drop)
}

fn count(report: &Report, item: &Item, choice: &Choice) {
    if let (What::File { size }, Choice::Skip) = (&item.what, choice) {
        add(&report.skipped, 1);
        add(&report.spared, *size);
    }
}
