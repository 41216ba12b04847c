//! News of changes, from a real agent.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test that is surprised should end there")]

#[path = "support/instance.rs"]
mod support;

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use kohakuriver_agent_protocol::files::{Code, Word};
use kohakuriver_agent_protocol::watch::{Event, Method, WatchInput, WatchOutput};
use kohakuriver_agent_protocol::{Message, take};
use support::Instance;

struct Watch {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Watch {
    fn start(instance: &Instance, paths: &[&Path]) -> Self {
        let (line, mut stream) = instance.open("{\"target\":\"watch\"}\n");
        assert_eq!(line, r#"{"ok":true}"#);
        let paths = paths.iter().map(|path| Word::from(path.as_os_str())).collect();
        let mut bytes = BytesMut::new();
        WatchInput::Start { paths }.encode(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    fn next(&mut self) -> WatchOutput {
        loop {
            if let Some(message) = take(&mut self.buffer).unwrap() {
                return message;
            }
            let mut some = [0; 4096];
            let count = self.stream.read(&mut some).unwrap();
            assert!(count > 0, "the agent ended the stream");
            self.buffer.extend_from_slice(&some[..count]);
        }
    }

    #[track_caller]
    fn expect(&mut self, event: Event, path: &Path) {
        loop {
            match self.next() {
                WatchOutput::Change(change)
                    if (change.event, &change.path) == (event, &Word::from(path.as_os_str())) =>
                {
                    return;
                }
                WatchOutput::Change(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn changes_are_told_at_once_also_in_directories_that_came_later() {
    let instance = Instance::start();
    let dir = instance.path("watched");
    fs::create_dir_all(dir.join("old")).unwrap();
    let mut watch = Watch::start(&instance, &[&dir, Path::new("/no/such/place")]);
    let WatchOutput::Watching(watching) = watch.next() else { panic!() };
    assert_eq!(watching.paths, [Word::from(dir.as_os_str())]);
    assert_eq!(watching.method, Method::Inotify);
    fs::write(dir.join("old/a"), "1").unwrap();
    watch.expect(Event::Create, &dir.join("old/a"));
    watch.expect(Event::Modify, &dir.join("old/a"));
    fs::create_dir_all(dir.join("new/deep")).unwrap();
    fs::write(dir.join("new/deep/b"), "1").unwrap();
    watch.expect(Event::Create, &dir.join("new/deep/b"));
    fs::rename(dir.join("new"), dir.join("moved")).unwrap();
    watch.expect(Event::Move, &dir.join("moved"));
    fs::write(dir.join("moved/deep/c"), "1").unwrap();
    watch.expect(Event::Create, &dir.join("moved/deep/c"));
    fs::remove_file(dir.join("moved/deep/c")).unwrap();
    watch.expect(Event::Delete, &dir.join("moved/deep/c"));
}

#[test]
fn a_client_that_does_not_listen_learns_that_it_missed_something_and_then_the_newest() {
    let instance = Instance::start();
    let dir = instance.path("watched");
    fs::create_dir(&dir).unwrap();
    let mut watch = Watch::start(&instance, &[&dir]);
    assert!(matches!(watch.next(), WatchOutput::Watching(_)));
    for number in 0..30_000 {
        let path = dir.join(format!("{number}-{}", "long".repeat(20)));
        fs::write(&path, "").unwrap();
        fs::remove_file(&path).unwrap();
    }
    loop {
        match watch.next() {
            WatchOutput::Lost => break,
            WatchOutput::Change(_) => {}
            other => panic!("{other:?}"),
        }
    }
    fs::write(dir.join("last"), "").unwrap();
    loop {
        match watch.next() {
            WatchOutput::Change(change)
                if change.path == Word::from(dir.join("last").as_os_str()) =>
            {
                break;
            }
            WatchOutput::Change(_) => {}
            // It may have been among what was lost.
            WatchOutput::Lost => fs::write(dir.join("last"), "again").unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn more_directories_than_the_kernel_tells_about_are_looked_through_instead() {
    let instance = Instance::start();
    let dir = instance.path("watched");
    for number in 0..8300 {
        fs::create_dir_all(dir.join(format!("{number}"))).unwrap();
    }
    let mut watch = Watch::start(&instance, &[&dir]);
    let WatchOutput::Watching(watching) = watch.next() else { panic!() };
    assert_eq!((watching.method, watching.interval_ms), (Method::Polling, Some(2000)));
    fs::write(dir.join("17/new"), "").unwrap();
    watch.expect(Event::Create, &dir.join("17/new"));
    fs::write(dir.join("17/new"), "more").unwrap();
    watch.expect(Event::Modify, &dir.join("17/new"));
    fs::remove_file(dir.join("17/new")).unwrap();
    watch.expect(Event::Delete, &dir.join("17/new"));
}

#[test]
fn places_without_files_are_not_watched() {
    let instance = Instance::start();
    for (path, code) in [("/proc/self", Code::Forbidden), ("/no/where", Code::NotFound)] {
        let mut watch = Watch::start(&instance, &[Path::new(path)]);
        let WatchOutput::Failed(failed) = watch.next() else { panic!() };
        assert_eq!(failed.code, code);
    }
}
