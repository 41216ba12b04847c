//! Files by the files protocol, against a real agent.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test that is surprised should end there")]

#[path = "support/instance.rs"]
mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::files::{
    Ask, Code, Entry, Failed, FilesInput, FilesOutput, Kind, Probed, Time, Word, Write,
    partial_name,
};
use kohakuriver_agent_protocol::{Message, take};
use support::{Instance, noise, wait_until};

/// The client's end of a stream of files.
struct Files {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Files {
    fn of(instance: &Instance) -> Self {
        let (line, stream) = instance.open("{\"target\":\"files\"}\n");
        assert_eq!(line, r#"{"ok":true}"#);
        Self { stream, buffer: BytesMut::new() }
    }

    fn send(&mut self, messages: &[FilesInput]) {
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| message.encode(&mut bytes).unwrap());
        self.stream.write_all(&bytes).unwrap();
    }

    fn next(&mut self) -> FilesOutput {
        loop {
            if let Some(message) = take(&mut self.buffer).unwrap() {
                return message;
            }
            let mut some = [0; 65536];
            let count = self.stream.read(&mut some).unwrap();
            assert!(count > 0, "the agent ended the stream");
            self.buffer.extend_from_slice(&some[..count]);
        }
    }

    fn ask(&mut self, ask: Ask) -> FilesOutput {
        self.send(&[FilesInput::Ask(ask)]);
        self.next()
    }

    #[track_caller]
    fn code(&mut self, ask: Ask) -> Code {
        match self.ask(ask) {
            FilesOutput::Failed(Failed { code, .. }) => code,
            other => panic!("no failure but {other:?}"),
        }
    }

    fn write(&mut self, order: Write, data: &[u8]) -> FilesOutput {
        self.send(&[FilesInput::Ask(Ask::Write(order))]);
        for chunk in data.chunks(200_000) {
            self.send(&[FilesInput::Data(Bytes::copy_from_slice(chunk))]);
        }
        self.send(&[FilesInput::End]);
        self.next()
    }

    fn read(&mut self, path: &Path, offset: u64, limit: Option<u64>) -> Result<Vec<u8>, Code> {
        self.send(&[FilesInput::Ask(Ask::Read { path: word(path), offset, limit })]);
        let mut content = Vec::new();
        loop {
            match self.next() {
                FilesOutput::Found(_) => {}
                FilesOutput::Data(data) => content.extend_from_slice(&data),
                FilesOutput::Done { .. } => return Ok(content),
                FilesOutput::Failed(failed) => return Err(failed.code),
                other => panic!("{other:?}"),
            }
        }
    }

    fn entries(&mut self, ask: Ask) -> (Vec<Entry>, bool) {
        self.send(&[FilesInput::Ask(ask)]);
        let mut all = Vec::new();
        loop {
            match self.next() {
                FilesOutput::Entries(entries) => all.extend(entries),
                FilesOutput::Done { more } => return (all, more),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn word(path: impl AsRef<OsStr>) -> Word {
    Word::from(path.as_ref())
}

fn order(path: &Path) -> Write {
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

fn names(entries: &[Entry]) -> Vec<OsString> {
    entries.iter().map(|entry| OsString::from(entry.name.clone())).collect()
}

#[test]
fn bytes_of_every_kind_come_back_as_they_went() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    for (name, length) in [("empty", 0), ("one", 1), ("large", 3_000_001)] {
        let (path, content) = (instance.path(name), noise(length));
        let written = files.write(Write { durable: true, ..order(&path) }, &content);
        assert_eq!(written, FilesOutput::Written { size: length as u64 });
        assert!(files.read(&path, 0, None).unwrap() == content, "{name}");
    }
    let (path, content) = (instance.path("large"), noise(3_000_001));
    assert_eq!(files.read(&path, 2_999_999, None).unwrap(), content[2_999_999..]);
    assert_eq!(files.read(&path, 7, Some(5)).unwrap(), content[7..12]);
    assert!(files.read(&path, 1 << 40, None).unwrap().is_empty());
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let mut messages = Vec::new();
    for number in 0..500u32 {
        let path = instance.path(&format!("tree/{}/{number}", number % 7));
        messages.extend([
            FilesInput::Ask(Ask::Write(Write { create_parents: true, ..order(&path) })),
            FilesInput::Data(Bytes::from(vec![1; number as usize])),
            FilesInput::End,
            FilesInput::Ask(Ask::Stat { path: word(&path), follow: false }),
        ]);
    }
    files.send(&messages);
    for number in 0..500u64 {
        assert_eq!(files.next(), FilesOutput::Written { size: number });
        let FilesOutput::Found(entry) = files.next() else { panic!() };
        assert_eq!((entry.size, entry.kind), (number, Kind::File));
    }
}

#[test]
fn a_file_is_replaced_whole_and_keeps_its_mode_and_its_owner() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let path = instance.path("script");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(2345)).unwrap();
    let mut reader = fs::File::open(&path).unwrap();
    files.send(&[FilesInput::Ask(Ask::Write(order(&path)))]);
    files.send(&[FilesInput::Data(Bytes::from_static(b"new"))]);
    wait_until("some is written", || instance.path(".script.kr-part").exists());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    files.send(&[FilesInput::End]);
    assert_eq!(files.next(), FilesOutput::Written { size: 3 });
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "old", "who had it open sees the old content");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 1234, 2345));
    assert!(!instance.path(".script.kr-part").exists());

    let said = Write { mode: Some(0o600), mtime: Some(Time(1_700_000_000, 5)), ..order(&path) };
    files.write(said, b"x");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 5));
}

#[test]
fn mounted_file_is_written_in_place() {
    let instance = Instance::start();
    let (mounted, point) = (instance.path("mounted"), instance.path("point"));
    fs::write(&mounted, "much longer than what comes").unwrap();
    fs::set_permissions(&mounted, PermissionsExt::from_mode(0o640)).unwrap();
    fs::write(&point, "").unwrap();
    let mount = format!("mount --bind {} {}", mounted.display(), point.display());
    assert!(instance.exec(&mount).status.success());
    let inode = fs::metadata(&mounted).unwrap().ino();

    let mut files = Files::of(&instance);
    let link = instance.path("link");
    symlink(&point, &link).unwrap();
    for (path, content) in [(&point, "first"), (&link, "")] {
        let written = files.write(order(path), content.as_bytes());
        let size = content.len() as u64;
        assert!(
            matches!(written, FilesOutput::Written { size: all } if all == size),
            "{written:?}"
        );
        assert_eq!(fs::read_to_string(&mounted).unwrap(), content);
    }
    let after = fs::metadata(&mounted).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o7777), (inode, 0o640));
    assert!(!instance.path(&partial_name(OsStr::new("point")).into_string().unwrap()).exists());

    let delete = Ask::Delete { path: word(&point), recursive: false };
    let FilesOutput::Failed(failed) = files.ask(delete) else { panic!("deleted") };
    assert!(failed.message.contains("is a mount point"), "{}", failed.message);
    let rename = Ask::Rename { from: word(&link), to: word(&point), overwrite: true };
    assert_eq!(files.code(rename), Code::Invalid);
}

#[test]
fn writing_through_a_symlink_replaces_what_it_leads_to() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    fs::create_dir(instance.path("deep")).unwrap();
    fs::write(instance.path("deep/real"), "old").unwrap();
    symlink("deep/../deep/real", instance.path("link")).unwrap();
    symlink("deep/later", instance.path("dangling")).unwrap();
    files.write(order(&instance.path("link")), b"new");
    files.write(order(&instance.path("dangling")), b"made");
    assert_eq!(fs::read(instance.path("deep/real")).unwrap(), b"new");
    assert_eq!(fs::read(instance.path("deep/later")).unwrap(), b"made");
    assert!(fs::symlink_metadata(instance.path("link")).unwrap().is_symlink());
    symlink("round", instance.path("round")).unwrap();
    let failed = files.write(order(&instance.path("round")), b"x");
    assert!(matches!(failed, FilesOutput::Failed(_)), "{failed:?}");
}

#[test]
fn a_broken_off_write_goes_on_where_it_stopped_and_only_for_the_same_source() {
    let instance = Instance::start();
    let path = instance.path("big");
    let mtime = Some(Time(1_600_000_000, 7));
    let resumable = Write { resumable: true, mtime, size: Some(10), ..order(&path) };
    let mut files = Files::of(&instance);
    files.send(&[
        FilesInput::Ask(Ask::Write(resumable.clone())),
        FilesInput::Data(Bytes::from_static(b"01234")),
    ]);
    let part = instance.path(".big.kr-part");
    wait_until("it arrived", || fs::metadata(&part).is_ok_and(|meta| meta.len() == 5));
    drop(files);
    let mut files = Files::of(&instance);
    let FilesOutput::Probed(Probed { entry: None, partial: Some(partial) }) =
        files.ask(Ask::Probe { path: word(&path) })
    else {
        panic!("nothing was left")
    };
    assert_eq!((partial.size, Some(partial.mtime)), (5, mtime));
    // Another source, or more than there is: begin again.
    let other = Write { offset: 5, mtime: Some(Time(1, 1)), ..resumable.clone() };
    for stale in [other, Write { offset: 6, ..resumable.clone() }] {
        let FilesOutput::Failed(failed) = files.write(stale, b"56789") else { panic!() };
        assert_eq!(failed.code, Code::Stale);
    }
    let rest = Write { offset: 5, ..resumable.clone() };
    assert_eq!(files.write(rest, b"56789"), FilesOutput::Written { size: 10 });
    assert_eq!(fs::read(&path).unwrap(), b"0123456789");
    assert!(!part.exists());

    let failed = files.write(resumable, b"012");
    assert!(matches!(failed, FilesOutput::Failed(_)), "another length than announced");
    assert_eq!(fs::read(&path).unwrap(), b"0123456789", "what was there stays");
    assert!(!part.exists());
}

#[test]
fn a_write_that_was_given_up_leaves_nothing_and_the_stream_goes_on() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let path = instance.path("x");
    files.send(&[
        FilesInput::Ask(Ask::Write(order(&path))),
        FilesInput::Data(Bytes::from_static(b"01234")),
        FilesInput::Abort,
    ]);
    assert!(matches!(files.next(), FilesOutput::Failed(Failed { code: Code::Aborted, .. })));
    assert!(!path.exists() && !instance.path(".x.kr-part").exists());
    // Its failure comes at once, and what still arrives of it is dropped.
    let missing = order(&instance.path("no/where"));
    let FilesOutput::Failed(failed) = files.write(missing, &noise(900_000)) else { panic!() };
    assert_eq!(failed.code, Code::NotFound);
    assert!(failed.message.ends_with("does not exist"), "{failed}");
    assert_eq!(files.write(order(&path), b"1"), FilesOutput::Written { size: 1 });
}

#[test]
fn two_writers_of_one_file_do_not_mix() {
    let instance = Instance::start();
    let (mut one, mut two) = (Files::of(&instance), Files::of(&instance));
    let path = instance.path("x");
    one.send(&[FilesInput::Ask(Ask::Write(order(&path)))]);
    one.send(&[FilesInput::Data(Bytes::from_static(b"aaaa"))]);
    wait_until("the first began", || instance.path(".x.kr-part").exists());
    assert_eq!(two.write(order(&path), b"bb"), FilesOutput::Written { size: 2 });
    assert_eq!(fs::read(&path).unwrap(), b"bb");
    one.send(&[FilesInput::End]);
    assert_eq!(one.next(), FilesOutput::Written { size: 4 });
    assert_eq!(fs::read(&path).unwrap(), b"aaaa");
}

#[test]
fn a_trap_in_the_place_of_the_partial_file_is_not_written_to() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let (path, victim) = (instance.path("x"), instance.path("victim"));
    let part = instance.path(partial_name("x".as_ref()).to_str().unwrap());
    fs::write(&victim, "safe").unwrap();
    for trap in [
        (|victim: &Path, part: &Path| symlink(victim, part).unwrap()) as fn(&Path, &Path),
        |victim, part| fs::hard_link(victim, part).unwrap(),
        |_, part| nix::unistd::mkfifo(part, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        |_, part| {
            fs::write(part, "").unwrap();
            std::os::unix::fs::chown(part, Some(1000), None).unwrap();
        },
    ] {
        trap(&victim, &part);
        assert_eq!(files.write(order(&path), b"new"), FilesOutput::Written { size: 3 });
        assert_eq!(fs::read(&victim).unwrap(), b"safe");
        let meta = fs::metadata(&path).unwrap();
        assert!(meta.is_file() && meta.nlink() == 1 && meta.uid() == 0);
    }
}

#[test]
fn proc_sys_and_dev_are_refused_by_every_way() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    symlink("/proc", instance.path("p")).unwrap();
    symlink("/", instance.path("root")).unwrap();
    symlink("/proc/self/environ", instance.path("environ")).unwrap();
    symlink("/dev/null", instance.path("null")).unwrap();
    symlink("../../../../../../../../dev", instance.path("up")).unwrap();
    symlink("/proc/self/root", instance.path("magic")).unwrap();
    let here = |name: &str| instance.path(name);
    let absolute =
        ["/proc/1/environ", "/../sys/kernel", "/dev/../dev/sda", "//proc/self/root/etc/passwd"];
    let ways =
        ["p/1/environ", "root/proc/1/environ", "environ", "null", "up/null", "magic/etc/passwd"];
    let all: Vec<PathBuf> =
        absolute.iter().map(PathBuf::from).chain(ways.iter().map(|way| here(way))).collect();
    for path in all {
        let shown = path.display();
        assert_eq!(files.read(&path, 0, None), Err(Code::Forbidden), "{shown}");
        let FilesOutput::Failed(failed) = files.write(order(&path), b"x") else {
            panic!("{shown} was written")
        };
        assert_eq!(failed.code, Code::Forbidden, "{shown}");
        let stat = Ask::Stat { path: word(&path), follow: true };
        assert_eq!(files.code(stat), Code::Forbidden, "{shown}");
    }
    for path in ["p/x", "root/proc", "root/dev", "up/x", "magic/tmp/x"] {
        let path = word(here(path));
        let mkdir = Ask::Mkdir { path: path.clone(), parents: false, mode: None };
        assert_eq!(files.code(mkdir), Code::Forbidden, "{path:?}");
        let delete = Ask::Delete { path: path.clone(), recursive: true };
        assert_eq!(files.code(delete), Code::Forbidden, "{path:?}");
        let link = Ask::Symlink { path: path.clone(), target: Word::from("x") };
        assert_eq!(files.code(link), Code::Forbidden, "{path:?}");
        let rename = Ask::Rename { from: word(here("environ")), to: path, overwrite: true };
        assert_eq!(files.code(rename), Code::Forbidden);
    }
    assert_eq!(files.code(Ask::Walk { path: word(here("p")) }), Code::Forbidden);
    assert_eq!(files.code(Ask::Delete { path: Word::from("/"), recursive: true }), Code::Invalid);
    // Above /etc/../.. there is nothing: it is the instance's own root.
    assert!(files.read(Path::new("/../../etc/passwd"), 0, None).is_ok());
    let (entries, _) = files.entries(Ask::List { path: word(here("root")), limit: 1000 });
    let names = names(&entries);
    assert!(names.contains(&"etc".into()) && !names.contains(&"proc".into()), "{names:?}");
}

#[test]
fn a_walk_finds_everything_once_with_odd_names_and_does_not_follow_symlinks() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let root = instance.path("tree");
    let odd = OsString::from_vec(b"not\xff\xfetext\nsecond line ".to_vec());
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/deep"), "12345").unwrap();
    fs::write(root.join(&odd), "x").unwrap();
    symlink("/etc", root.join("a/etc")).unwrap();
    for number in 0..600 {
        fs::write(root.join(format!("f{number:03}")), "").unwrap();
    }
    let (entries, _) = files.entries(Ask::Walk { path: word(&root) });
    let mut found = names(&entries);
    assert_eq!(found[0], "");
    found.sort();
    let before = found.len();
    found.dedup();
    assert_eq!((found.len(), before), (606, 606));
    assert!(found.contains(&odd));
    let place = |name: &str| entries.iter().position(|entry| entry.name == word(name)).unwrap();
    assert!(place("a") < place("a/b") && place("a/b") < place("a/b/deep"));
    let link = &entries[place("a/etc")];
    assert_eq!((link.kind, &link.target), (Kind::Symlink, &Some(Word::from("/etc"))));
    // A file is a walk of one.
    let (entries, _) = files.entries(Ask::Walk { path: word(root.join(&odd)) });
    assert_eq!((entries.len(), entries[0].size), (1, 1));
}

#[test]
fn a_list_is_sorted_and_bounded_and_says_when_there_is_more() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let dir = instance.path("many");
    fs::create_dir(&dir).unwrap();
    for number in 0..1200 {
        fs::write(dir.join(format!("{number:04}")), "").unwrap();
    }
    let (entries, more) = files.entries(Ask::List { path: word(&dir), limit: u32::MAX });
    assert_eq!((entries.len(), more), (1000, true));
    assert_eq!(names(&entries)[999], "0999");
    let file = Ask::List { path: word(dir.join("0001")), limit: 9 };
    assert_eq!(files.code(file), Code::NotDirectory);
}

#[test]
fn names_are_changed_as_asked_and_refusals_have_their_codes() {
    let instance = Instance::start();
    let mut files = Files::of(&instance);
    let here = |name: &str| word(instance.path(name));
    let done = FilesOutput::Done { more: false };
    let mkdir = |name, parents| Ask::Mkdir { path: here(name), parents, mode: Some(0o1770) };
    assert_eq!(files.code(mkdir("a/b/c", false)), Code::NotFound);
    assert_eq!(files.ask(mkdir("a/b/c", true)), done);
    assert_eq!(files.ask(mkdir("a/b/c", true)), done);
    assert_eq!(files.code(mkdir("a/b/c", false)), Code::Exists);
    assert_eq!(fs::metadata(instance.path("a/b/c")).unwrap().mode() & 0o7777, 0o1770);
    fs::write(instance.path("one"), "1").unwrap();
    fs::write(instance.path("two"), "2").unwrap();
    let rename = |from, to, overwrite| Ask::Rename { from: here(from), to: here(to), overwrite };
    assert_eq!(files.code(rename("one", "two", false)), Code::Exists);
    assert_eq!(files.code(rename("none", "two", true)), Code::NotFound);
    assert_eq!(files.code(rename("a", "a/b/x", false)), Code::Invalid);
    assert_eq!(files.ask(rename("one", "two", true)), done);
    assert_eq!(fs::read(instance.path("two")).unwrap(), b"1");
    let link = |target| Ask::Symlink { path: here("link"), target: Word::from(target) };
    assert_eq!(files.ask(link("nowhere")), done);
    assert_eq!(files.ask(link("two")), done);
    assert_eq!(
        files.ask(Ask::ReadLink { path: here("link") }),
        FilesOutput::Link(Word::from("two"))
    );
    assert_eq!(files.code(Ask::ReadLink { path: here("two") }), Code::Invalid);
    let delete = |name, recursive| Ask::Delete { path: here(name), recursive };
    symlink(instance.path("two"), instance.path("a/b/out")).unwrap();
    assert_eq!(files.code(delete("a", false)), Code::IsDirectory);
    assert_eq!(files.ask(delete("a", true)), done);
    assert_eq!(files.ask(delete("a", false)), done, "what is gone is deleted");
    assert!(!instance.path("a").exists() && instance.path("two").exists());
    assert_eq!(files.ask(Ask::Sync { path: here("two") }), done);
    assert_eq!(files.read(&instance.path(""), 0, None), Err(Code::IsDirectory));
    let FilesOutput::Found(entry) = files.ask(Ask::Stat { path: here("two"), follow: false })
    else {
        panic!()
    };
    assert_eq!((entry.size, entry.owner.as_deref()), (1, Some("root")));
}

#[test]
fn a_full_disk_is_told_keeps_nothing_half_and_does_not_stop_other_requests() {
    let instance = Instance::start();
    let disk = instance.path("disk");
    fs::create_dir(&disk).unwrap();
    // In the agent's own mount namespace, which ends with it.
    let pid = instance.agent_pid();
    let mut mount = std::process::Command::new("nsenter");
    mount.arg(format!("--mount=/proc/{pid}/ns/mnt"));
    mount.args(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk);
    assert!(mount.status().unwrap().success());
    let seen = format!("/proc/{pid}/root{}", disk.display());
    let mut files = Files::of(&instance);
    let path = disk.join("x");
    let resumable = Write { resumable: true, mtime: Some(Time(1, 2)), ..order(&path) };
    let FilesOutput::Failed(failed) = files.write(resumable, &noise(3_000_000)) else { panic!() };
    assert_eq!(failed.code, Code::DiskFull);
    assert!(failed.message.contains("full"), "{failed}");
    assert_eq!(fs::read_dir(seen).unwrap().count(), 0);
    assert_eq!(files.write(order(&path), b"fits"), FilesOutput::Written { size: 4 });
}

#[test]
fn what_is_not_understood_is_answered_and_ends_the_stream_alone() {
    let instance = Instance::start();
    for strange in [&b"\x01\x00\x00\x00\x02{}"[..], b"\x03\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n"]
    {
        let mut files = Files::of(&instance);
        files.stream.write_all(strange).unwrap();
        let FilesOutput::Failed(failed) = files.next() else { panic!() };
        assert_eq!(failed.code, Code::Invalid);
        assert_eq!(files.stream.read(&mut [0]).unwrap_or(0), 0);
    }
    assert!(Files::of(&instance).read(Path::new("/etc/passwd"), 0, None).is_ok());
}
