//! Requests for files and news of changes survive the way, and a stranger's bytes do no harm.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::files::{
    Ask, Code, Entry, Failed, FilesInput, FilesOutput, Kind, MAX_NAME, Missed, Partial, Probed,
    Time, Word, Write, normalise, partial_name, permissions, split,
};
use kohakuriver_agent_protocol::watch::{Change, Event, Method, WatchInput, WatchOutput, Watching};
use kohakuriver_agent_protocol::{FrameReader, Message, decode_all};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

fn os(longest: usize) -> impl Strategy<Value = OsString> {
    vec(1..=255u8, 1..longest).prop_map(OsString::from_vec)
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        os(40).prop_map(|name| Word::from(name.as_os_str())),
        "\\PC{0,20}".prop_map(Word::Text)
    ]
}

fn time() -> impl Strategy<Value = Time> {
    any::<(i64, u32)>().prop_map(|(seconds, nanoseconds)| Time(seconds, nanoseconds))
}

fn data() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn write() -> impl Strategy<Value = Write> {
    let options = (option::of(any::<u32>()), option::of(time()), option::of(any::<u64>()));
    (word(), any::<u64>(), options, any::<(bool, bool, bool)>()).prop_map(
        |(path, offset, (mode, mtime, size), (create_parents, resumable, durable))| Write {
            path,
            offset,
            mode,
            mtime,
            size,
            create_parents,
            resumable,
            durable,
        },
    )
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        (word(), any::<u32>()).prop_map(|(path, limit)| Ask::List { path, limit }),
        (word(), any::<bool>()).prop_map(|(path, follow)| Ask::Stat { path, follow }),
        word().prop_map(|path| Ask::Probe { path }),
        word().prop_map(|path| Ask::Walk { path }),
        (word(), any::<u64>(), option::of(any::<u64>()))
            .prop_map(|(path, offset, limit)| Ask::Read { path, offset, limit }),
        write().prop_map(Ask::Write),
        (word(), any::<bool>(), option::of(any::<u32>()))
            .prop_map(|(path, parents, mode)| Ask::Mkdir { path, parents, mode }),
        (word(), word(), any::<bool>()).prop_map(|(from, to, overwrite)| Ask::Rename {
            from,
            to,
            overwrite
        }),
        (word(), any::<bool>()).prop_map(|(path, recursive)| Ask::Delete { path, recursive }),
        (word(), word()).prop_map(|(path, target)| Ask::Symlink { path, target }),
        word().prop_map(|path| Ask::ReadLink { path }),
        word().prop_map(|path| Ask::Sync { path }),
    ]
}

fn input() -> impl Strategy<Value = FilesInput> {
    prop_oneof![
        ask().prop_map(FilesInput::Ask),
        data().prop_map(FilesInput::Data),
        Just(FilesInput::End),
        Just(FilesInput::Abort),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        Just(Kind::File),
        Just(Kind::Directory),
        Just(Kind::Symlink),
        Just(Kind::Other)
    ];
    let numbers = any::<(u64, u32, u32, u32)>();
    (word(), kind, numbers, time(), option::of(word()), option::of("[a-z]{1,9}")).prop_map(
        |(name, kind, (size, mode, uid, gid), mtime, target, owner)| Entry {
            name,
            kind,
            size,
            mode,
            uid,
            gid,
            mtime,
            target,
            owner,
        },
    )
}

fn failed() -> impl Strategy<Value = Failed> {
    let code = prop_oneof![Just(Code::NotFound), Just(Code::DiskFull), Just(Code::Other)];
    (code, "\\PC{0,40}").prop_map(|(code, message)| Failed { code, message })
}

fn output() -> impl Strategy<Value = FilesOutput> {
    let partial = (any::<u64>(), time()).prop_map(|(size, mtime)| Partial { size, mtime });
    prop_oneof![
        any::<bool>().prop_map(|more| FilesOutput::Done { more }),
        failed().prop_map(FilesOutput::Failed),
        entry().prop_map(FilesOutput::Found),
        (option::of(entry()), option::of(partial))
            .prop_map(|(entry, partial)| FilesOutput::Probed(Probed { entry, partial })),
        vec(entry(), 0..4).prop_map(FilesOutput::Entries),
        (word(), failed()).prop_map(|(name, failed)| FilesOutput::Missed(Missed { name, failed })),
        data().prop_map(FilesOutput::Data),
        any::<u64>().prop_map(|size| FilesOutput::Written { size }),
        word().prop_map(FilesOutput::Link),
    ]
}

fn news() -> impl Strategy<Value = WatchOutput> {
    let method = prop_oneof![Just(Method::Inotify), Just(Method::Polling)];
    let watching = (vec(word(), 0..3), method, option::of(any::<u32>()));
    let event = prop_oneof![Just(Event::Create), Just(Event::Modify), Just(Event::Move)];
    prop_oneof![
        watching.prop_map(|(paths, method, interval_ms)| {
            WatchOutput::Watching(Watching { paths, method, interval_ms })
        }),
        (event, word(), any::<bool>())
            .prop_map(|(event, path, is_dir)| WatchOutput::Change(Change { event, path, is_dir })),
        Just(WatchOutput::Lost),
        failed().prop_map(WatchOutput::Failed),
    ]
}

fn bytes_of<M: Message>(messages: &[M]) -> BytesMut {
    let mut bytes = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut bytes).unwrap());
    bytes
}

proptest! {
    #[test]
    fn what_a_client_says_is_what_the_agent_hears(messages in vec(input(), 0..6)) {
        prop_assert_eq!(decode_all::<FilesInput>(&bytes_of(&messages)).unwrap(), messages);
    }

    #[test]
    fn what_the_agent_says_is_what_a_client_hears(messages in vec(output(), 0..6)) {
        prop_assert_eq!(decode_all::<FilesOutput>(&bytes_of(&messages)).unwrap(), messages);
    }

    #[test]
    fn news_arrive_as_they_were_told(messages in vec(news(), 0..6), paths in vec(word(), 0..4)) {
        prop_assert_eq!(decode_all::<WatchOutput>(&bytes_of(&messages)).unwrap(), messages);
        let start = [WatchInput::Start { paths }];
        prop_assert_eq!(decode_all::<WatchInput>(&bytes_of(&start)).unwrap(), start);
    }

    #[test]
    fn a_strangers_bytes_are_refused_and_never_a_panic(
        kind in 0..12u8, payload in vec(any::<u8>(), 0..200), rest in vec(any::<u8>(), 0..50),
    ) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let bytes = [&[kind][..], &length, &payload, &rest].concat();
        let _ = decode_all::<FilesInput>(&bytes);
        let _ = decode_all::<FilesOutput>(&bytes);
        let _ = decode_all::<WatchInput>(&bytes);
        let _ = decode_all::<WatchOutput>(&bytes);
    }

    #[test]
    fn a_normal_path_is_absolute_bounded_and_normal(text in vec(any::<u8>(), 0..80)) {
        if let Ok(path) = normalise(&OsString::from_vec(text)) {
            prop_assert!(path.is_absolute());
            prop_assert!(path.components().all(|part| part.as_os_str() != ".."));
            prop_assert_eq!(normalise(path.as_os_str()).unwrap(), path);
        }
    }

    #[test]
    fn a_partial_name_fits_beside_any_name(name in os(MAX_NAME + 1)) {
        prop_assert!(partial_name(&name).len() <= MAX_NAME);
    }
}

#[tokio::test]
async fn data_of_any_length_arrives_whole_between_small_messages() {
    for length in [0, 1, 40_000, 600_000] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut orders, _answers) = split(near);
        let sender = tokio::spawn(async move {
            orders.ask(Ask::Sync { path: Word::from("/a") }).await.unwrap();
            orders.data(Bytes::from(vec![7; length])).await.unwrap();
            orders.send(&FilesInput::End).await.unwrap();
            orders.shutdown().await.unwrap();
        });
        let mut frames = FrameReader::<_, FilesInput>::new(far, &[]);
        assert!(matches!(frames.next().await.unwrap(), Some(FilesInput::Ask(_))));
        let mut seen = 0;
        while let Some(FilesInput::Data(data)) = frames.next().await.unwrap() {
            seen += data.len();
        }
        assert_eq!(seen, length);
        sender.await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_answer_is_an_error_and_the_next_one_still_comes() {
    let (near, mut far) = tokio::io::duplex(4096);
    let (_orders, mut answers) = split(near);
    let failed = Failed { code: Code::DiskFull, message: "full".to_owned() };
    let messages = [FilesOutput::Failed(failed), FilesOutput::Written { size: 5 }];
    far.write_all(&bytes_of(&messages)).await.unwrap();
    assert_eq!(answers.next().await.unwrap_err().to_string(), "full");
    assert_eq!(answers.next().await.unwrap(), FilesOutput::Written { size: 5 });
    drop(far);
    assert!(answers.next().await.unwrap_err().to_string().contains("ended"));
}

#[test]
fn permissions_look_as_ls_shows_them() {
    assert_eq!(permissions(0o755), "rwxr-xr-x");
    assert_eq!(permissions(0o4711), "rws--x--x");
    assert_eq!(permissions(0o1777), "rwxrwxrwt");
    assert_eq!(permissions(0o6600), "rwS--S---");
}
