//! Terminal sessions and the clients that come, go and come back.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test's helpers fail the test"
)]

#[path = "support/instance.rs"]
mod support;

use std::time::Duration;

use bytes::Bytes;
use kohakuriver_agent_protocol::exec::Size;
use kohakuriver_agent_protocol::session::{
    Attach, Attached, SessionInfo, SessionInput, SessionOutput,
};
use kohakuriver_agent_protocol::{FrameReader, write};
use support::Instance;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const LIMIT: Duration = Duration::from_secs(120);
const SIZE: Size = Size { rows: 24, cols: 80 };

/// A connection to the agent's sessions, and what it has seen.
struct Client {
    reader: FrameReader<OwnedReadHalf, SessionOutput>,
    writer: OwnedWriteHalf,
    sent: u64,
    position: u64,
    taken: u64,
    seen: String,
}

fn connect(instance: &Instance) -> (FrameReader<OwnedReadHalf, SessionOutput>, OwnedWriteHalf) {
    let (answer, stream) = instance.open("{\"target\":\"session\"}\n");
    assert_eq!(answer, r#"{"ok":true}"#);
    stream.set_nonblocking(true).unwrap();
    let (read, writer) = UnixStream::from_std(stream).unwrap().into_split();
    (FrameReader::new(read, &[]), writer)
}

async fn ask(instance: &Instance, question: SessionInput) -> SessionOutput {
    let (mut reader, mut writer) = connect(instance);
    write(&mut writer, &question).await.unwrap();
    reader.next().await.unwrap().unwrap()
}

async fn list(instance: &Instance) -> Vec<SessionInfo> {
    match ask(instance, SessionInput::List).await {
        SessionOutput::List(sessions) => sessions,
        other => panic!("no list but {other:?}"),
    }
}

fn attach(session: Option<&str>) -> Attach {
    Attach {
        session: session.map(ToOwned::to_owned),
        size: SIZE,
        term: "xterm".into(),
        client: 1,
        ..Attach::default()
    }
}

impl Client {
    async fn join(instance: &Instance, attach: Attach) -> (Self, Attached) {
        let (mut reader, mut writer) = connect(instance);
        write(&mut writer, &SessionInput::Attach(attach)).await.unwrap();
        let attached = match reader.next().await.unwrap().unwrap() {
            SessionOutput::Attached(attached) => attached,
            other => panic!("not attached but {other:?}"),
        };
        let (sent, position) = (attached.input, attached.output);
        (Self { reader, writer, sent, position, taken: sent, seen: String::new() }, attached)
    }

    async fn type_in(&mut self, text: &str) {
        let data = Bytes::copy_from_slice(text.as_bytes());
        write(&mut self.writer, &SessionInput::Input { position: self.sent, data }).await.unwrap();
        self.sent += text.len() as u64;
    }

    async fn read(&mut self) {
        match self.reader.next().await.unwrap().expect("the stream goes on") {
            SessionOutput::Output(data) => {
                self.position += data.len() as u64;
                self.seen.push_str(&String::from_utf8_lossy(&data));
            }
            SessionOutput::Screen(data) => self.seen.push_str(&String::from_utf8_lossy(&data)),
            SessionOutput::Skipped(to) => self.position = to,
            SessionOutput::InputTaken(to) => self.taken = to,
            other => panic!("while waiting: {other:?}"),
        }
    }

    /// Waits until all that was typed is the session's.
    async fn settle(&mut self) {
        let reading = async {
            while self.taken < self.sent {
                self.read().await;
            }
        };
        tokio::time::timeout(LIMIT, reading).await.expect("the input is taken");
    }

    async fn wait_for(&mut self, text: &str) {
        let reading = async {
            while !self.seen.contains(text) {
                self.read().await;
            }
        };
        tokio::time::timeout(LIMIT, reading)
            .await
            .unwrap_or_else(|_| panic!("no {text} in {}", self.seen));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_its_connection_and_nothing_is_missed_or_typed_twice() {
    let instance = Instance::start();
    let (mut client, attached) = Client::join(&instance, attach(None)).await;
    assert!(attached.created && attached.session == "1");
    client.type_in("x=kept; echo re''ady\r").await;
    client.wait_for("ready").await;
    // Sent, but the connection breaks before the client hears that it was taken.
    client.type_in("echo on''ce $x\r").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (position, before) = (client.position, client.sent);
    drop(client);
    let again = Attach { existing: true, output: Some(position), ..attach(Some("1")) };
    let (mut client, attached) = Client::join(&instance, again).await;
    assert_eq!((attached.output, attached.created), (position, false));
    assert_eq!(attached.input, before, "all of it was taken");
    // A client that does not believe it sends it again: it is not typed twice.
    client.sent = before - 5;
    client.type_in("ce $x\r".get(1..).unwrap()).await;
    client.sent = before;
    client.type_in("echo do''ne\r").await;
    client.wait_for("done").await;
    assert_eq!(client.seen.matches("once kept").count(), 1, "{}", client.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_sees_the_screen_and_types_into_the_same_shell() {
    let instance = Instance::start();
    let (mut first, _) = Client::join(&instance, attach(Some("pair"))).await;
    first.type_in("echo vis''ible\r").await;
    first.wait_for("visible").await;
    let other = Attach { client: 2, ..attach(Some("pair")) };
    let (mut second, attached) = Client::join(&instance, other).await;
    assert!(!attached.created);
    second.wait_for("visible").await;
    second.type_in("echo from''-second\r").await;
    first.wait_for("from-second").await;
    let watcher = Attach { client: 3, read_only: true, ..attach(Some("pair")) };
    let (mut watcher, _) = Client::join(&instance, watcher).await;
    watcher.type_in("echo never''-typed\r").await;
    first.type_in("echo la''st\r").await;
    watcher.wait_for("last").await;
    assert!(!watcher.seen.contains("never-typed"));
    let sessions = list(&instance).await;
    assert_eq!((sessions.len(), sessions[0].clients), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_terminals_are_no_typing() {
    let instance = Instance::start();
    let (mut first, _) = Client::join(&instance, attach(Some("s"))).await;
    first.type_in("stty -icanon -echo; echo re''ady; cat -v\r").await;
    first.wait_for("ready").await;
    let large = Size { rows: 30, cols: 100 };
    let second = Attach { client: 2, size: large, ..attach(Some("s")) };
    let (mut second, _) = Client::join(&instance, second).await;
    // The second is in control, and both terminals answer.
    for answer in ["\x1b[24;80R", "\x1b[I", "\x1b[?62;22c", "\x1b]11;rgb:0/0/0\x1b\\"] {
        first.type_in(answer).await;
    }
    first.settle().await;
    assert_eq!(list(&instance).await[0].size, large);
    second.type_in("\x1b[1;1R\x1b[O(end)").await;
    second.wait_for("(end)").await;
    let (_, answers) = second.seen.rsplit_once("ready").unwrap_or(("", &second.seen));
    assert!(answers.contains("^[[1;1R^[[O(end)"), "{answers}");
    for other in ["24;80R", "^[[I", "22c", "rgb"] {
        assert!(!second.seen.contains(other), "{other} in {}", second.seen);
    }
    // What is typed goes to the program and takes the size along, a lone Escape too.
    for (typed, shown) in [("typed", "typed"), ("\x1b", "^[")] {
        first.seen.clear();
        first.type_in(typed).await;
        first.wait_for(shown).await;
        assert_eq!(list(&instance).await[0].size, SIZE);
        second.type_in("again").await;
        second.settle().await;
        assert_eq!(list(&instance).await[0].size, large);
        first.wait_for("again").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn screen_larger_than_a_message_is_shown() {
    let instance = Instance::start();
    let (mut first, _) = Client::join(&instance, attach(Some("s"))).await;
    let line =
        r#"s=""; for (i = 0; i < 80; i++) s = s sprintf("\033[38;2;%d;%d;%dmx", i, 255, i + 1)"#;
    let script = format!("awk 'BEGIN {{ {line}; for (n = 0; n < 1100; n++) print s }}'");
    first.type_in(&format!("{script}; echo do''ne\r")).await;
    first.wait_for("done").await;
    let (mut second, _) = Client::join(&instance, Attach { client: 2, ..attach(Some("s")) }).await;
    second.wait_for("done").await;
    assert!(
        second.seen.len() > kohakuriver_agent_protocol::MAX_PAYLOAD,
        "{} bytes",
        second.seen.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn locale_is_the_clients_where_the_image_has_it() {
    let instance = Instance::start();
    for (given, locale) in [(None, "C.UTF-8"), (Some("C"), "C"), (Some("xx_XX.UTF-8"), "C.UTF-8")] {
        let locales = given.map(|name| ("LANG".to_owned(), name.to_owned()));
        let attach = Attach { locale: locales.into_iter().collect(), ..attach(None) };
        let (mut client, _) = Client::join(&instance, attach).await;
        client.type_in("echo locale=$LANG=\r").await;
        client.wait_for(&format!("locale={locale}=")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_holds_up_nobody_and_is_shown_the_screen_later() {
    let instance = Instance::start();
    let (mut quick, _) = Client::join(&instance, attach(Some("s"))).await;
    let (mut slow, _) = Client::join(&instance, Attach { client: 2, ..attach(Some("s")) }).await;
    quick.type_in("seq 1 400000; echo fin''ished\r").await;
    quick.wait_for("finished").await;
    // The quick one missed nothing of it.
    assert!(quick.seen.contains("\r\n200000\r\n"));
    slow.wait_for("finished").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_shell_is_told_with_its_code_and_takes_the_session_off_the_list() {
    let instance = Instance::start();
    let (mut client, _) = Client::join(&instance, attach(None)).await;
    client.type_in("exit 3\r").await;
    let ended = async {
        loop {
            if let SessionOutput::Ended(exit) = client.reader.next().await.unwrap().unwrap() {
                return exit.code();
            }
        }
    };
    assert_eq!(tokio::time::timeout(LIMIT, ended).await.unwrap(), 3);
    assert!(list(&instance).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_ends_an_unnamed_session_and_leaves_a_named_one() {
    let instance = Instance::start();
    let (mut unnamed, _) = Client::join(&instance, attach(None)).await;
    let (mut named, _) = Client::join(&instance, attach(Some("work"))).await;
    let ephemeral = Attach { ephemeral: true, ..attach(None) };
    let (short, _) = Client::join(&instance, ephemeral).await;
    assert_eq!(list(&instance).await.len(), 3);
    for client in [&mut unnamed, &mut named] {
        write(&mut client.writer, &SessionInput::Hangup).await.unwrap();
    }
    drop(short);
    for _ in 0..200 {
        if list(&instance).await.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let names: Vec<_> = list(&instance).await.into_iter().map(|session| session.name).collect();
    assert_eq!(names, ["work"]);
    ask(&instance, SessionInput::End("work".into())).await;
    for _ in 0..200 {
        if list(&instance).await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_and_sessions_that_are_gone_are_refused_with_the_reason() {
    let instance = Instance::start();
    for name in ["", "a b", "../x", "\u{1b}[2J", &"x".repeat(65)] {
        let answer = ask(&instance, SessionInput::Attach(attach(Some(name)))).await;
        assert!(
            matches!(answer, SessionOutput::Failed(ref failed) if failed.code == 2),
            "{answer:?}"
        );
    }
    let gone = Attach { existing: true, ..attach(Some("gone")) };
    let answer = ask(&instance, SessionInput::Attach(gone)).await;
    assert!(matches!(answer, SessionOutput::Failed(ref failed) if failed.message.contains("gone")));
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_of_nothing_and_of_everything_do_no_harm() {
    let instance = Instance::start();
    let odd = Attach { size: Size { rows: 0, cols: 0 }, ..attach(None) };
    let (mut client, _) = Client::join(&instance, odd).await;
    for size in
        [Size { rows: 65535, cols: 65535 }, Size { rows: 0, cols: 5 }, Size { rows: 7, cols: 33 }]
    {
        write(&mut client.writer, &SessionInput::Resize(size)).await.unwrap();
    }
    client.type_in("stty size; echo o''k\r").await;
    client.wait_for("ok").await;
    assert!(client.seen.contains("7 33"), "{}", client.seen);
}
