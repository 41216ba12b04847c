//! What of the source is missing at the target.

use std::path::Path;

use kohakuriver_wire::files::{Ask, ClientError, FilesOutput, Kind};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::item::{Choice, Item, What, choose};
use super::local;
use super::remote::{AHEAD, Talk, lost, next, word};
use super::report::{Report, add};
use crate::failure::Failure;

/// Everything is: the target was not there, or is to be written anew.
pub async fn all(
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), Failure> {
    while let Some(item) = items.recv().await {
        if choices.send((item, Choice::Copy { offset: 0 })).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// By what is on this machine.
pub async fn by_local(
    root: &Path,
    report: &Report,
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), Failure> {
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

/// By what is in a VPS, asked ahead.
pub async fn by_remote(
    talk: &mut Talk,
    name: &str,
    root: &Path,
    report: &Report,
    mut items: Receiver<Item>,
    choices: Sender<(Item, Choice)>,
) -> Result<(), Failure> {
    let (asked, mut answered) = channel::<Item>(AHEAD);
    let Talk { orders, answers } = talk;
    let asking = async move {
        let broken = |error: std::io::Error| lost(name, error.into());
        while let Some(item) = next(&mut items, asked.capacity(), orders, name).await? {
            if matches!(item.what, What::File { .. }) {
                let ask = Ask::Probe { path: word(&item.under(root)) };
                orders.ask(ask).await.map_err(broken)?;
            }
            if asked.send(item).await.is_err() {
                break;
            }
        }
        orders.flush().await.map_err(broken)
    };
    let hearing = async {
        while let Some(item) = answered.recv().await {
            let choice = match item.what {
                What::File { size } => match answers.next().await.and_then(FilesOutput::probed) {
                    Ok(probed) => {
                        let there = probed.entry.filter(|entry| entry.kind == Kind::File);
                        let there = there.map(|entry| (entry.size, entry.mtime));
                        choose(size, item.mtime, there, probed.partial)
                    }
                    // Writing it will say the same, and is where failures are counted.
                    Err(ClientError::Failed(_)) => Choice::Copy { offset: 0 },
                    Err(error) => return Err(lost(name, error)),
                },
                What::Directory | What::Link { .. } => Choice::Copy { offset: 0 },
            };
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
