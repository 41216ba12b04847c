//! Valid inputs from which mutations start.

use bytes::{Bytes, BytesMut};
use kohakuriver_agent_protocol::exec::{ExecExit, ExecInput, ExecOutput, ExecStart, Size, Tty};
use kohakuriver_agent_protocol::files::{
    Ask, Code, Entry, Failed, FilesInput, FilesOutput, Kind as FileKind, Time, Word, Write,
};
use kohakuriver_agent_protocol::session::{Attach, Attached, SessionInput, SessionOutput};
use kohakuriver_agent_protocol::tunnel::{Kind, Proto, TunnelFrame};
use kohakuriver_agent_protocol::watch::{Change, Event, Method, WatchInput, WatchOutput, Watching};
use kohakuriver_agent_protocol::{Message, udp};

/// Returns at least one seed for each target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "gateway-greeting" => vec![b"REQUEST_TUNNEL 7398213345412345856\n".to_vec()],
        "request-head" => vec![
            b"cookie:a=b; kohakuriver_session=feed ; c\nauthorization:Bearer 0123".to_vec(),
            b"x-forwarded-for:203.0.113.7:5000, [::1]:99,10.0.0.1\nx-forwarded-proto:https"
                .to_vec(),
            b"forwarded:for=\"[2001:db8::7]:4711\";proto=https, for=_x".to_vec(),
            b"host:[::1]:8000\norigin:https://[::1]:8000".to_vec(),
        ],
        "forward-frame" => [Kind::Connect, Kind::Data, Kind::Error].map(forward_frame).to_vec(),
        "link-to-host" => vec![
            link(r#"{"type":"heartbeat","metrics":{}}"#),
            link(r#"{"type":"answer","request":1,"answer":{"answer":"deleted"}}"#),
            link(r#"{"type":"dial_failed","error":"x"}"#),
        ],
        "link-to-runner" => vec![
            link(r#"{"type":"welcome","version":3,"node_name":"n1","now_ms":5}"#),
            link(r#"{"type":"dial_data","count":2}"#),
            link(
                r#"{"type":"ask","request":1,"task_id":"7","question":{"question":"list_snapshots"}}"#,
            ),
        ],
        "link-stream" => vec![
            link(r#"{"task_id":"7","target":{"target":"tcp","port":80}}"#),
            link(r#"{"result":"refused","error":"no"}"#),
        ],
        "stream-greeting" => vec![
            br#"{"target":"udp","port":53}"#.to_vec(),
            br#"{"ok":false,"error":"no"}"#.to_vec(),
        ],
        "qmp-line" => vec![
            br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#.to_vec(),
            br#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#
                .to_vec(),
            br#"{"id": 7, "return": {"status": "running"}}"#.to_vec(),
            br#"{"id": 8, "error": {"class": "GenericError", "desc": "no"}}"#.to_vec(),
        ],
        "guest-proof" => vec![
            [&b"KRGUEST1"[..], &[7; 32], &[9; 32]].concat(),
            [0x5a; 64].to_vec(),
            "0123456789abcdef".repeat(4).into_bytes(),
        ],
        "exec-frames" => vec![frames(&exec_input()), frames(&exec_output())],
        "session-frames" => vec![frames(&session_input()), frames(&session_output())],
        "files-frames" => vec![frames(&files_input()), frames(&files_output())],
        "files-path" => vec![b"/srv/../proc//./1/mem".to_vec(), b"/a/b/".to_vec()],
        "watch-frames" => vec![frames(&watch_input()), frames(&watch_output())],
        "datagrams" => {
            let mut out = BytesMut::new();
            [&b"one"[..], b"", b"three"].iter().for_each(|datagram| udp::put(&mut out, datagram));
            vec![out.to_vec()]
        }
        "sftp-packet" => sftp(),
        "terminal-output" => vec![
            b"\x18\x50hello\r\n\x1b[1;31mred\x1b[m\x1b[?1049h\x1b[2J\x1b[5;9Hx\x1b]2;title\x07"
                .to_vec(),
            "\x05\x04\u{6f22}\u{1f980}e\u{301}\x1b[3;4r\x1b[2L\x1b[9999;9999H\x1b[8;70;70t".into(),
        ],
        "command-words" => vec![br#"/bin/echo "a \"b\"" 'c d' e\ f"#.to_vec()],
        _ => Vec::new(),
    }
}

fn forward_frame(kind: Kind) -> Vec<u8> {
    let payload = Bytes::from_static(b"payload");
    TunnelFrame { kind, proto: Proto::Tcp, client: 7, port: 80, payload }.encode().to_vec()
}

fn link(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or_default();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

fn frames<M: Message>(messages: &[M]) -> Vec<u8> {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| message.encode(&mut out).expect("seeds are small"));
    out.to_vec()
}

fn files_input() -> [FilesInput; 6] {
    let path = || Word::from("/srv/a");
    let write = Write {
        path: path(),
        offset: 5,
        mode: Some(0o644),
        mtime: Some(Time(1, 2)),
        size: Some(7),
        create_parents: true,
        resumable: true,
        durable: true,
    };
    [
        FilesInput::Ask(Ask::Write(write)),
        FilesInput::Data(Bytes::from_static(b"67")),
        FilesInput::End,
        FilesInput::Abort,
        FilesInput::Ask(Ask::Read { path: path(), offset: 1, limit: Some(2) }),
        FilesInput::Ask(Ask::Rename { from: path(), to: path(), overwrite: true }),
    ]
}

fn files_output() -> [FilesOutput; 6] {
    let entry = Entry {
        name: Word::Bytes(vec![255, 10]),
        kind: FileKind::Symlink,
        size: 1,
        mode: 0o777,
        uid: 0,
        gid: 0,
        mtime: Time(1, 2),
        target: Some(Word::from("x")),
        owner: Some("root".to_owned()),
    };
    let failed = Failed { code: Code::DiskFull, message: "full".to_owned() };
    [
        FilesOutput::Found(entry.clone()),
        FilesOutput::Entries(vec![entry]),
        FilesOutput::Data(Bytes::from_static(b"data")),
        FilesOutput::Written { size: 9 },
        FilesOutput::Failed(failed),
        FilesOutput::Done { more: true },
    ]
}

fn watch_input() -> [WatchInput; 1] {
    [WatchInput::Start { paths: vec![Word::from("/shared")] }]
}

fn watch_output() -> [WatchOutput; 3] {
    let path = Word::from("/shared");
    let watching =
        Watching { paths: vec![path.clone()], method: Method::Inotify, interval_ms: None };
    let change = Change { event: Event::Create, path, is_dir: true };
    [WatchOutput::Watching(watching), WatchOutput::Change(change), WatchOutput::Lost]
}

fn exec_input() -> [ExecInput; 5] {
    let size = Size { rows: 24, cols: 80 };
    let start = ExecStart {
        argv: vec!["sh".into(), "-c".into()],
        env: vec![("A".into(), "1".into())],
        tty: Some(Tty { term: "xterm".into(), size }),
        ..ExecStart::default()
    };
    [
        ExecInput::Start(start),
        ExecInput::Stdin(Bytes::from_static(b"in")),
        ExecInput::Signal(15),
        ExecInput::Resize(size),
        ExecInput::StdinEnd,
    ]
}

fn exec_output() -> [ExecOutput; 4] {
    [
        ExecOutput::Stdout(Bytes::from_static(b"out")),
        ExecOutput::Stderr(Bytes::from_static(b"err")),
        ExecOutput::StdinTaken(2),
        ExecOutput::Exit(ExecExit::Code(0)),
    ]
}

fn session_input() -> [SessionInput; 3] {
    [
        SessionInput::Attach(Attach { session: Some("main".into()), ..Attach::default() }),
        SessionInput::Input { position: 9, data: Bytes::from_static(b"ls\r") },
        SessionInput::End("main".into()),
    ]
}

fn session_output() -> [SessionOutput; 3] {
    let attached = Attached { session: "1".into(), output: 5, input: 2, created: false };
    [
        SessionOutput::Attached(attached),
        SessionOutput::Screen(Bytes::from_static(b"\x1b[H")),
        SessionOutput::InputTaken(4),
    ]
}

/// Kind, id, fields: open, read, write, rename, an extension.
fn sftp() -> Vec<Vec<u8>> {
    let string = |text: &[u8]| {
        let length = u32::try_from(text.len()).unwrap_or_default();
        [&length.to_be_bytes(), text].concat()
    };
    let packet = |kind: u8, fields: &[&[u8]]| [&[kind], fields.concat().as_slice()].concat();
    vec![
        packet(3, &[&string(b"/etc/passwd"), &[0, 0, 0, 1], &[0, 0, 0, 0]]),
        packet(5, &[&string(&[0, 0, 0, 1]), &[0; 8], &[0, 0, 128, 0]]),
        packet(6, &[&string(&[0, 0, 0, 1]), &[0; 8], &string(b"data")]),
        packet(18, &[&string(b"/a"), &string(b"/b")]),
        packet(200, &[&string(b"posix-rename@openssh.com"), &string(b"/a"), &string(b"/b")]),
    ]
}
