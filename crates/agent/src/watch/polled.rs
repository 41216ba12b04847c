//! A tree whose changes are found by looking again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::read_dir;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kohakuriver_agent_protocol::files::{Code, Failed, is_forbidden};
use kohakuriver_agent_protocol::watch::Event;

use super::News;
use crate::files::Outcome;
use crate::files::place::{Found, check_disk, enter, handle, kind_of, stat_in};

/// Bounds the remembered state to a few megabytes.
const MAX_FILES: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    is_dir: bool,
    size: i64,
    mtime: (i64, i64),
    number: u64,
}

#[derive(Debug)]
pub(super) struct Polled {
    seen: HashMap<PathBuf, Look>,
}

impl Polled {
    pub fn start(roots: &[PathBuf]) -> Outcome<Self> {
        Ok(Self { seen: look(roots)? })
    }

    pub fn look(&mut self, roots: &[PathBuf], news: &mut News) -> Outcome<()> {
        let now = look(roots)?;
        for (path, before) in &self.seen {
            match now.get(path) {
                None => news.add(Event::Delete, path, before.is_dir),
                // A directory changes with what is in it, which is told anyhow.
                Some(after) if after != before && !(after.is_dir && before.is_dir) => {
                    news.add(Event::Modify, path, after.is_dir);
                }
                Some(_) => {}
            }
        }
        for (path, look) in &now {
            if !self.seen.contains_key(path) {
                news.add(Event::Create, path, look.is_dir);
            }
        }
        self.seen = now;
        Ok(())
    }
}

fn look(roots: &[PathBuf]) -> Outcome<HashMap<PathBuf, Look>> {
    let mut seen = HashMap::new();
    for root in roots {
        // One that has gone is as empty as can be.
        if let Ok(folder) = Found::directory(root).and_then(|found| found.reopen_directory()) {
            look_into(folder.into(), root.clone(), &mut seen)?;
        }
    }
    Ok(seen)
}

fn look_into(root: OwnedFd, path: PathBuf, seen: &mut HashMap<PathBuf, Look>) -> Outcome<()> {
    let mut todo = vec![(root, path)];
    while let Some((folder, path)) = todo.pop() {
        let Ok(items) = read_dir(handle(&folder)) else {
            continue;
        };
        for item in items.flatten() {
            let below = path.join(item.file_name());
            let Ok(stat) = stat_in(&folder, &item.file_name()) else {
                continue;
            };
            let is_dir = kind_of(&stat) == libc::S_IFDIR;
            if is_dir
                && !is_forbidden(&below)
                && let Ok(entered) = enter(&folder, &item.file_name())
                && check_disk(&entered).is_ok()
            {
                todo.push((entered, below.clone()));
            }
            if seen.len() >= MAX_FILES {
                let message =
                    format!("there are more than {MAX_FILES} files to watch: name less of them");
                return Err(Failed { code: Code::TooLarge, message });
            }
            let look = Look {
                is_dir,
                size: stat.st_size,
                mtime: (stat.st_mtime, stat.st_mtime_nsec),
                number: stat.st_ino,
            };
            match seen.entry(below) {
                Entry::Vacant(place) => drop(place.insert(look)),
                Entry::Occupied(_) => {}
            }
        }
    }
    Ok(())
}
