//! Messages survive the way, whatever pieces they arrive in, and a stranger's bytes do no harm.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::exec::{
    ExecExit, ExecFailed, ExecInput, ExecOutput, ExecStart, Size, Tty,
};
use kohakuriver_agent_protocol::session::{
    Attach, Attached, MAX_NAME, MAX_TITLE, MAX_USER, MOST_SESSIONS, SessionInfo, SessionInput,
    SessionOutput,
};
use kohakuriver_agent_protocol::{FrameError, FrameReader, MAX_PAYLOAD, Message, decode_all, udp};
use proptest::collection::vec;
use proptest::prelude::*;

fn size() -> impl Strategy<Value = Size> {
    any::<(u16, u16)>().prop_map(|(rows, cols)| Size { rows, cols })
}

fn data() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn exit() -> impl Strategy<Value = ExecExit> {
    prop_oneof![any::<i32>().prop_map(ExecExit::Code), (1..65i32).prop_map(ExecExit::Signal)]
}

fn failed() -> impl Strategy<Value = ExecFailed> {
    (any::<u8>(), "\\PC{0,40}").prop_map(|(code, message)| ExecFailed { code, message })
}

fn start() -> impl Strategy<Value = ExecStart> {
    let word = vec(1..=255u8, 0..20).prop_map(|bytes| {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(bytes).as_os_str().into()
    });
    let tty = ("[a-z]{0,9}", size()).prop_map(|(term, size)| Tty { term, size });
    (vec(word, 0..4), vec(("[A-Z]{1,5}", "\\PC{0,9}"), 0..3), proptest::option::of(tty)).prop_map(
        |(argv, env, tty)| ExecStart {
            argv,
            locale: env.clone(),
            env,
            workdir: Some("/x".into()),
            user: None,
            tty,
        },
    )
}

fn exec_input() -> impl Strategy<Value = ExecInput> {
    prop_oneof![
        start().prop_map(ExecInput::Start),
        data().prop_map(ExecInput::Stdin),
        Just(ExecInput::StdinEnd),
        any::<u8>().prop_map(ExecInput::Signal),
        size().prop_map(ExecInput::Resize),
    ]
}

fn exec_output() -> impl Strategy<Value = ExecOutput> {
    prop_oneof![
        data().prop_map(ExecOutput::Stdout),
        data().prop_map(ExecOutput::Stderr),
        any::<u32>().prop_map(ExecOutput::StdinTaken),
        exit().prop_map(ExecOutput::Exit),
        failed().prop_map(ExecOutput::Failed),
    ]
}

fn session_input() -> impl Strategy<Value = SessionInput> {
    let attach = (any::<(bool, bool, u64)>(), size(), proptest::option::of(any::<u64>())).prop_map(
        |((read_only, existing, client), size, output)| Attach {
            session: Some("main".into()),
            read_only,
            existing,
            size,
            client,
            output,
            ..Attach::default()
        },
    );
    prop_oneof![
        attach.prop_map(SessionInput::Attach),
        (any::<u64>(), data()).prop_map(|(position, data)| SessionInput::Input { position, data }),
        size().prop_map(SessionInput::Resize),
        Just(SessionInput::Hangup),
        Just(SessionInput::List),
        "\\PC{0,20}".prop_map(SessionInput::End),
    ]
}

fn session_output() -> impl Strategy<Value = SessionOutput> {
    let info = ("[a-z]{1,9}", any::<(u64, u64, u32)>(), size()).prop_map(
        |(name, (created_at, active_at, clients), size)| SessionInfo {
            user: "root".into(),
            title: name.clone(),
            name,
            created_at,
            active_at,
            clients,
            size,
        },
    );
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(output, input)| SessionOutput::Attached(Attached {
            session: "1".into(),
            output,
            input,
            created: true
        })),
        data().prop_map(SessionOutput::Output),
        data().prop_map(SessionOutput::Screen),
        any::<u64>().prop_map(SessionOutput::InputTaken),
        any::<u64>().prop_map(SessionOutput::Skipped),
        exit().prop_map(SessionOutput::Ended),
        failed().prop_map(SessionOutput::Failed),
        vec(info, 0..3).prop_map(SessionOutput::List),
    ]
}

fn encoded<M: Message>(messages: &[M]) -> BytesMut {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut out).unwrap());
    out
}

/// Reads everything through a stream that gives at most `piece` bytes at once.
fn read_in_pieces<M: Message>(bytes: &[u8], piece: usize) -> Result<Vec<M>, FrameError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await;
        });
        let mut reader = FrameReader::new(far, &[]);
        let mut messages = Vec::new();
        while let Some(message) = reader.next().await? {
            messages.push(message);
        }
        Ok(messages)
    })
}

fn check<M: Message + PartialEq + std::fmt::Debug>(messages: &[M], piece: usize) {
    let bytes = encoded(messages);
    assert_eq!(decode_all::<M>(&bytes).unwrap(), messages);
    assert_eq!(read_in_pieces::<M>(&bytes, piece).unwrap(), messages);
}

macro_rules! reads_back {
    ($($name:ident: $strategy:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(100))]
            $(#[test]
            fn $name(messages in vec($strategy, 0..6), piece in 1..200usize) {
                check(&messages, piece);
            })*
        }
    };
}

reads_back! {
    exec_input_reads_back: exec_input();
    exec_output_reads_back: exec_output();
    session_input_reads_back: session_input();
    session_output_reads_back: session_output();
}

proptest! {
    #[test]
    fn a_strangers_bytes_are_refused_or_read_and_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_all::<ExecInput>(&bytes);
        let _ = decode_all::<ExecOutput>(&bytes);
        let _ = decode_all::<SessionInput>(&bytes);
        let _ = decode_all::<SessionOutput>(&bytes);
        let mut buffer = BytesMut::from(bytes.as_slice());
        while udp::take(&mut buffer).is_some() {}
    }

    #[test]
    fn datagrams_keep_their_borders(datagrams in vec(vec(any::<u8>(), 0..200), 0..8), cut in 0..50usize) {
        let mut all = BytesMut::new();
        datagrams.iter().for_each(|datagram| udp::put(&mut all, datagram));
        let whole = all;
        let mut buffer = BytesMut::new();
        let mut read = Vec::new();
        for piece in whole.chunks(cut + 1) {
            buffer.extend_from_slice(piece);
            while let Some(datagram) = udp::take(&mut buffer) {
                read.push(datagram.to_vec());
            }
        }
        prop_assert_eq!(read, datagrams);
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_it_is_waited_for() {
    let mut bytes = vec![2];
    bytes.extend_from_slice(&u32::try_from(MAX_PAYLOAD + 1).unwrap().to_be_bytes());
    assert!(matches!(decode_all::<ExecInput>(&bytes), Err(FrameError::TooLong(_))));
}

#[test]
fn oversized_message_is_refused_where_it_is_made() {
    let start = |length: usize| {
        ExecInput::Start(ExecStart {
            argv: vec!["x".repeat(length).as_str().into()],
            ..ExecStart::default()
        })
    };
    let mut out = BytesMut::from(&b"before"[..]);
    for message in [ExecInput::Stdin(vec![0; MAX_PAYLOAD + 1].into()), start(MAX_PAYLOAD)] {
        assert!(matches!(message.encode(&mut out), Err(FrameError::Oversized(_))));
        assert_eq!(&out[..], b"before");
    }
    start(MAX_PAYLOAD / 2).encode(&mut out).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut written = Vec::new();
    let result =
        runtime.block_on(kohakuriver_agent_protocol::write(&mut written, &start(MAX_PAYLOAD)));
    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    assert!(written.is_empty());
}

#[test]
fn list_of_all_sessions_at_their_bounds_fits_a_frame() {
    // Each takes six bytes in JSON.
    let worst = |length: usize| "\u{1}".repeat(length);
    let session = SessionInfo {
        name: worst(MAX_NAME),
        user: worst(MAX_USER),
        created_at: u64::MAX,
        active_at: u64::MAX,
        clients: u32::MAX,
        size: Size { rows: u16::MAX, cols: u16::MAX },
        title: worst(MAX_TITLE),
    };
    check(&[SessionOutput::List(vec![session; MOST_SESSIONS])], 4096);
}

#[test]
fn an_end_in_the_middle_of_a_message_is_told() {
    let bytes = encoded(&[ExecInput::Stdin(Bytes::from_static(b"abc"))]);
    let cut = read_in_pieces::<ExecInput>(&bytes[..bytes.len() - 1], 3);
    assert!(matches!(cut, Err(FrameError::Cut)), "{cut:?}");
}
