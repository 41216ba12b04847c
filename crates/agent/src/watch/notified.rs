//! A tree whose changes the kernel tells.

use std::collections::HashMap;
use std::fs::read_dir;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kohakuriver_agent_protocol::files::is_forbidden;
use kohakuriver_agent_protocol::watch::Event;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::News;
use crate::files::place::{Found, check_disk, enter, handle};

/// Each costs about a kilobyte of the kernel's memory, of which all instances of a node have one
/// pool.
const MAX_DIRECTORIES: usize = 8192;

/// The kernel tells about no more directories.
#[derive(Debug)]
pub(super) struct TooMany;

#[derive(Debug)]
pub(super) struct Notified {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
}

impl AsFd for Notified {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Notified {
    /// `None` where the kernel does not tell about as many directories.
    pub fn start(roots: &[PathBuf]) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        let mut notified = Self { inotify, directories: HashMap::new() };
        for root in roots {
            let folder = Found::directory(root).and_then(|found| found.reopen_directory()).ok()?;
            notified.watch(folder.into(), root.clone(), None).ok()?;
        }
        Some(notified)
    }

    /// Takes what the kernel has to tell.
    pub fn read(&mut self, news: &mut News) -> Result<(), TooMany> {
        match self.inotify.read_events() {
            Ok(events) => events.into_iter().try_for_each(|event| self.take(event, news)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(_) => Err(TooMany),
        }
    }

    fn take(&mut self, event: InotifyEvent, news: &mut News) -> Result<(), TooMany> {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            news.lose();
            return Ok(());
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return Ok(());
        }
        let (Some(folder), Some(name)) = (self.directories.get(&event.wd), event.name) else {
            return Ok(());
        };
        let path = folder.join(&name);
        let is_dir = mask.contains(AddWatchFlags::IN_ISDIR);
        let kind = if mask.contains(AddWatchFlags::IN_CREATE) {
            Event::Create
        } else if mask.contains(AddWatchFlags::IN_DELETE) {
            Event::Delete
        } else if mask.intersects(AddWatchFlags::IN_MOVE) {
            Event::Move
        } else {
            Event::Modify
        };
        news.add(kind, &path, is_dir);
        if is_dir && mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            self.forget(&path);
        }
        if is_dir && mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            // What was put into it before it was watched is found by looking.
            let entered = Found::directory(&path).ok().filter(|found| found.real == path);
            if let Some(folder) = entered.and_then(|found| found.reopen_directory().ok()) {
                self.watch(folder.into(), path, Some(news))?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, moved: &Path) {
        let inotify = &self.inotify;
        self.directories.retain(|watch, path| {
            let keep = !path.starts_with(moved);
            if !keep {
                let _ = inotify.rm_watch(*watch);
            }
            keep
        });
    }

    /// Watches a directory and all below it. `news`: whom to tell what is found in them.
    fn watch(
        &mut self,
        folder: OwnedFd,
        path: PathBuf,
        mut news: Option<&mut News>,
    ) -> Result<(), TooMany> {
        let wanted = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        let mut todo = vec![(folder, path)];
        while let Some((folder, path)) = todo.pop() {
            if self.directories.len() >= MAX_DIRECTORIES {
                return Err(TooMany);
            }
            match self.inotify.add_watch(&handle(&folder), wanted) {
                Ok(watch) => drop(self.directories.insert(watch, path.clone())),
                Err(Errno::ENOSPC | Errno::ENOMEM) => return Err(TooMany),
                Err(_) => continue,
            }
            let Ok(items) = read_dir(handle(&folder)) else {
                continue;
            };
            for item in items.flatten() {
                let below = path.join(item.file_name());
                let is_dir = item.file_type().is_ok_and(|kind| kind.is_dir());
                if let Some(news) = news.as_deref_mut() {
                    news.add(Event::Create, &below, is_dir);
                }
                if is_dir
                    && !is_forbidden(&below)
                    && let Ok(entered) = enter(&folder, &item.file_name())
                    && check_disk(&entered).is_ok()
                {
                    // Each waits with a descriptor of its own; a directory that is wider than
                    // all we may watch is given up here.
                    if todo.len() >= MAX_DIRECTORIES {
                        return Err(TooMany);
                    }
                    todo.push((entered, below));
                }
            }
        }
        Ok(())
    }
}
