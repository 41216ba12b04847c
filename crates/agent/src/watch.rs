//! News of changes to files, told on standard output by a process of its own.
//!
//! The kernel tells about one directory at a time, so every directory of a tree is watched. Where
//! that is more than it allows, the tree is looked through again and again instead.

mod notified;
mod polled;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kohakuriver_agent_protocol::files::{Code, Failed, Word};
use kohakuriver_agent_protocol::watch::{
    Change, Event, MAX_PATHS, Method, WatchInput, WatchOutput, Watching,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::AgentError;
use crate::files::place::{Found, path_of};
use crate::files::{Broken, Channel, Outcome, channel_ended};
use notified::Notified;
use polled::Polled;

/// News are collected this long, so that what happens again and again is told once.
const COLLECT: Duration = Duration::from_millis(50);
/// More than this in that time are not told one by one.
const MAX_NEWS: usize = 4096;
const POLL_EVERY: Duration = Duration::from_secs(2);

type WatchChannel = Channel<WatchInput, WatchOutput>;

/// Tells about changes on standard output until the client is done.
pub fn watch_server() -> Result<(), AgentError> {
    crate::sys::limit_allocator();
    let mut channel = Channel::default();
    channel_ended(serve(&mut channel)).map_err(AgentError::Files)
}

fn serve(channel: &mut WatchChannel) -> Result<(), Broken> {
    let Some(WatchInput::Start { paths }) = channel.next()? else {
        return Ok(());
    };
    let roots = match roots(paths) {
        Ok(roots) => roots,
        Err(error) => return fail(channel, error),
    };
    let shown: Vec<_> = roots.iter().map(|root| Word::from(root.as_os_str())).collect();
    if let Some(notified) = Notified::start(&roots) {
        let watching =
            Watching { paths: shown.clone(), method: Method::Inotify, interval_ms: None };
        channel.send(&WatchOutput::Watching(watching))?;
        if tell_notified(channel, notified)? == Next::Over {
            return Ok(());
        }
    }
    let interval_ms = u32::try_from(POLL_EVERY.as_millis()).ok();
    let mut polled = match Polled::start(&roots) {
        Ok(polled) => polled,
        Err(error) => return fail(channel, error),
    };
    let watching = Watching { paths: shown, method: Method::Polling, interval_ms };
    channel.send(&WatchOutput::Watching(watching))?;
    loop {
        channel.flush()?;
        let (over, _) = wait(None, POLL_EVERY)?;
        if over {
            return Ok(());
        }
        let mut news = News::default();
        if let Err(error) = polled.look(&roots, &mut news) {
            return fail(channel, error);
        }
        news.tell(channel)?;
    }
}

fn fail(channel: &mut WatchChannel, failed: Failed) -> Result<(), Broken> {
    channel.send(&WatchOutput::Failed(failed))?;
    channel.flush()
}

/// The directories to watch. Those that are not there are left out, as long as one is.
fn roots(paths: Vec<Word>) -> Outcome<Vec<PathBuf>> {
    if paths.len() > MAX_PATHS {
        let message = format!("at most {MAX_PATHS} directories can be watched at once");
        return Err(Failed { code: Code::Invalid, message });
    }
    let mut roots: Vec<PathBuf> = Vec::new();
    let mut refused = None;
    for path in paths {
        match path_of(path).and_then(|path| Found::directory(&path)) {
            Ok(found) if roots.contains(&found.real) => {}
            Ok(found) => roots.push(found.real),
            Err(error) if error.code == Code::Forbidden => return Err(error),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        _ if !roots.is_empty() => Ok(roots),
        Some(error) => Err(error),
        None => Err(Failed { code: Code::Invalid, message: "nothing to watch".to_owned() }),
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    Over,
    Poll,
}

fn tell_notified(channel: &mut WatchChannel, mut notified: Notified) -> Result<Next, Broken> {
    let mut news = News::default();
    loop {
        channel.flush()?;
        let patience =
            news.since.map_or(Duration::MAX, |since| COLLECT.saturating_sub(since.elapsed()));
        let (over, ready) = wait(Some(notified.as_fd()), patience)?;
        if over {
            return Ok(Next::Over);
        }
        if ready && notified.read(&mut news).is_err() {
            news.tell(channel)?;
            return Ok(Next::Poll);
        }
        if news.since.is_some_and(|since| since.elapsed() >= COLLECT) {
            news.tell(channel)?;
        }
    }
}

/// Waits for news or the client's end: whether it is over, and whether there are news.
fn wait(news: Option<BorrowedFd<'_>>, patience: Duration) -> Result<(bool, bool), Broken> {
    let stdin = io::stdin();
    let mut watched = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    watched.extend(news.map(|news| PollFd::new(news, PollFlags::POLLIN)));
    // One more, because the kernel counts whole milliseconds.
    let limit = patience.checked_add(Duration::from_millis(1));
    let limit = limit.and_then(|limit| PollTimeout::try_from(limit).ok());
    match poll(&mut watched, limit.unwrap_or(PollTimeout::NONE)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = |at: usize| watched.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
    // A client says nothing after its first message: what there is to read is its end.
    Ok((ready(0), ready(1)))
}

/// Changes that are not told yet.
#[derive(Debug, Default)]
struct News {
    changes: Vec<Change>,
    known: HashSet<(Event, PathBuf)>,
    since: Option<Instant>,
    lost: bool,
}

impl News {
    fn add(&mut self, event: Event, path: &Path, is_dir: bool) {
        self.since.get_or_insert_with(Instant::now);
        if self.changes.len() >= MAX_NEWS {
            self.lost = true;
            return;
        }
        // A file that comes, goes and comes again is told in that order.
        match event {
            Event::Create | Event::Move => {
                self.known.remove(&(Event::Delete, path.to_owned()));
            }
            Event::Delete => {
                self.known.remove(&(Event::Create, path.to_owned()));
                self.known.remove(&(Event::Modify, path.to_owned()));
            }
            Event::Modify => {}
        }
        if self.known.insert((event, path.to_owned())) {
            self.changes.push(Change { event, path: Word::from(path.as_os_str()), is_dir });
        }
    }

    fn lose(&mut self) {
        self.since.get_or_insert_with(Instant::now);
        self.lost = true;
    }

    fn tell(&mut self, channel: &mut WatchChannel) -> Result<(), Broken> {
        let Self { changes, lost, .. } = std::mem::take(self);
        for change in changes {
            channel.send(&WatchOutput::Change(change))?;
        }
        if lost {
            channel.send(&WatchOutput::Lost)?;
        }
        channel.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_again_and_again_is_told_once_and_in_order() {
        let mut news = News::default();
        let path = Path::new("/a");
        for event in [Event::Create, Event::Modify, Event::Modify, Event::Delete, Event::Create] {
            news.add(event, path, false);
        }
        let told: Vec<_> = news.changes.iter().map(|change| change.event).collect();
        assert_eq!(told, [Event::Create, Event::Modify, Event::Delete, Event::Create]);
    }

    #[test]
    fn more_news_than_can_be_told_are_bounded_and_said_to_be_lost() {
        let mut news = News::default();
        for number in 0..MAX_NEWS + 5 {
            news.add(Event::Create, &PathBuf::from(format!("/{number}")), false);
        }
        assert_eq!((news.changes.len(), news.lost), (MAX_NEWS, true));
    }
}
