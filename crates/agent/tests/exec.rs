//! Programs run for clients of the exec protocol.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::os::unix::net::UnixStream as BlockingStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kohakuriver_agent_protocol::exec::{
    ExecExit, ExecFailed, ExecInput, ExecOutput, ExecStart, STDIN_WINDOW, Size, Tty,
};
use kohakuriver_agent_protocol::{FrameReader, write};
use support::{Instance, noise, wait_until};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

const LIMIT: Duration = Duration::from_secs(20);

struct Exec {
    reader: FrameReader<OwnedReadHalf, ExecOutput>,
    writer: OwnedWriteHalf,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<ExecExit>,
    failed: Option<ExecFailed>,
}

fn argv(words: &[&str]) -> ExecStart {
    ExecStart { argv: words.iter().map(|word| (*word).into()).collect(), ..ExecStart::default() }
}

impl Exec {
    async fn start(instance: &Instance, start: ExecStart) -> Self {
        let (answer, stream): (String, BlockingStream) = instance.open("{\"target\":\"exec\"}\n");
        assert_eq!(answer, r#"{"ok":true}"#);
        stream.set_nonblocking(true).unwrap();
        let (read, mut writer) = UnixStream::from_std(stream).unwrap().into_split();
        write(&mut writer, &ExecInput::Start(start)).await.unwrap();
        Self { reader: FrameReader::new(read, &[]), writer }
    }

    async fn say(&mut self, message: ExecInput) {
        write(&mut self.writer, &message).await.unwrap();
    }

    /// Sends everything within the window while reading what comes, until the program has ended.
    async fn finish(mut self, mut input: &[u8]) -> Ran {
        let mut ran = Ran::default();
        let mut room = STDIN_WINDOW;
        let mut ended = false;
        let talk = async {
            loop {
                let most = input.len().min(room).min(32 * 1024);
                if most > 0 {
                    let (now, later) = input.split_at(most);
                    self.say(ExecInput::Stdin(Bytes::copy_from_slice(now))).await;
                    (input, room) = (later, room - most);
                    continue;
                }
                if input.is_empty() && !ended {
                    ended = true;
                    // One that could not start is gone already.
                    let _ = write(&mut self.writer, &ExecInput::StdinEnd).await;
                }
                match self.reader.next().await.unwrap() {
                    Some(ExecOutput::Stdout(data)) => ran.stdout.extend_from_slice(&data),
                    Some(ExecOutput::Stderr(data)) => ran.stderr.extend_from_slice(&data),
                    Some(ExecOutput::StdinTaken(bytes)) => room += bytes as usize,
                    Some(ExecOutput::Exit(exit)) => ran.exit = Some(exit),
                    Some(ExecOutput::Failed(failed)) => ran.failed = Some(failed),
                    None => return,
                }
            }
        };
        tokio::time::timeout(LIMIT, talk).await.expect("the program ends");
        ran
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_arrive_exactly_and_streams_and_exit_code_stay_apart() {
    let instance = Instance::start();
    let words = [
        "/bin/sh",
        "-c",
        r#"printf '<%s>' "$0" "$@"; echo oops >&2; exit 7"#,
        "a  b",
        "",
        "$(id)\n'",
    ];
    let ran = Exec::start(&instance, argv(&words)).await.finish(b"").await;
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), "<a  b><><$(id)\n'>");
    assert_eq!((ran.stderr.as_slice(), ran.exit), (&b"oops\n"[..], Some(ExecExit::Code(7))));
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_of_input_and_output_at_once_arrive_whole() {
    let instance = Instance::start();
    let input = noise(6_000_000);
    let ran = Exec::start(&instance, argv(&["cat"])).await.finish(&input).await;
    assert!(ran.stdout == input);
    assert_eq!(ran.exit, Some(ExecExit::Code(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_child_that_outlives_the_program_arrives() {
    let instance = Instance::start();
    let command = "(sleep 2; echo late; echo later >&2) & echo early; exit 3";
    let ran = Exec::start(&instance, argv(&["/bin/sh", "-c", command])).await.finish(b"").await;
    assert_eq!(
        (ran.stdout.as_slice(), ran.stderr.as_slice()),
        (&b"early\nlate\n"[..], &b"later\n"[..])
    );
    assert_eq!(ran.exit, Some(ExecExit::Code(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_ends_with_its_program_whatever_holds_it() {
    let instance = Instance::start();
    for child in ["sleep 30", "yes"] {
        let command = format!("trap '' HUP; {child} & exit 3");
        let tty = Tty { term: "xterm".into(), size: Size { rows: 24, cols: 80 } };
        let start = ExecStart { tty: Some(tty), ..argv(&["/bin/sh", "-c", &command]) };
        let ran = Exec::start(&instance, start).await.finish(b"").await;
        assert_eq!(ran.exit, Some(ExecExit::Code(3)), "{child}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_run_has_the_code_that_shells_give_it() {
    let instance = Instance::start();
    let code = |ran: Ran| ran.failed.unwrap().code;
    let none = Exec::start(&instance, argv(&["no-such-program"])).await.finish(b"").await;
    assert_eq!(code(none), 127);
    let denied = Exec::start(&instance, argv(&["/etc/passwd"])).await.finish(b"").await;
    assert_eq!(code(denied), 126);
    let lost = ExecStart { workdir: Some("/no/such/place".into()), ..argv(&["true"]) };
    assert_eq!(code(Exec::start(&instance, lost).await.finish(b"").await), 126);
    let nobody = ExecStart { user: Some("no-such-user".into()), ..argv(&["true"]) };
    assert_eq!(code(Exec::start(&instance, nobody).await.finish(b"").await), 126);
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_directory_are_the_instances_and_the_clients() {
    let instance = Instance::start();
    let start = ExecStart {
        env: vec![("MINE".into(), "yes".into()), ("BAD=NAME".into(), "x".into())],
        workdir: Some("/usr".into()),
        ..argv(&["/bin/sh", "-c", "echo $PWD $MINE $FROM_CONFIG $FROM_IMAGE"])
    };
    let ran = Exec::start(&instance, start).await.finish(b"").await;
    assert_eq!(ran.stdout, b"/usr yes config image\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_gets_through_to_a_program_that_reads_nothing_and_is_not_read() {
    let instance = Instance::start();
    // It fills its output, which nobody reads, and takes none of its input.
    let script = "trap 'kill $!; exit 5' INT; yes & while :; do sleep 0.05; done";
    let mut exec = Exec::start(&instance, argv(&["/bin/sh", "-c", script])).await;
    for _ in 0..STDIN_WINDOW / 32768 {
        exec.say(ExecInput::Stdin(vec![0; 32768].into())).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    exec.say(ExecInput::Signal(2)).await;
    let began = Instant::now();
    let ran = exec.finish(b"").await;
    assert_eq!(ran.exit, Some(ExecExit::Code(5)));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_by_signal_is_told_as_one() {
    let instance = Instance::start();
    let ran =
        Exec::start(&instance, argv(&["/bin/sh", "-c", "kill -9 $$"])).await.finish(b"").await;
    assert_eq!(ran.exit, Some(ExecExit::Signal(9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_hangs_the_program_up() {
    let instance = Instance::start();
    let mark = instance.path("hung-up");
    let script = format!(
        "trap 'echo yes > {}; exit' HUP; echo up; while :; do sleep 0.05; done",
        mark.display()
    );
    let mut exec = Exec::start(&instance, argv(&["/bin/sh", "-c", &script])).await;
    assert_eq!(exec.reader.next().await.unwrap(), Some(ExecOutput::Stdout("up\n".into())));
    drop(exec);
    wait_until("the program hears of it", || mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_input_than_the_window_allows_ends_the_stream() {
    let instance = Instance::start();
    let mut exec = Exec::start(&instance, argv(&["sleep", "30"])).await;
    for _ in 0..10 {
        let flood = ExecInput::Stdin(vec![0; STDIN_WINDOW / 4].into());
        let _ = write(&mut exec.writer, &flood).await;
    }
    let end = async { while let Ok(Some(_)) = exec.reader.next().await {} };
    tokio::time::timeout(LIMIT, end).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_its_size_takes_a_new_one_and_an_end_of_input() {
    let instance = Instance::start();
    let tty = Tty { term: "xterm-test".into(), size: Size { rows: 31, cols: 97 } };
    // A signal ends a shell's `read`, so it reads again until it has read something.
    let script = "stty size; echo $TERM; trap 'stty size' WINCH; \
        until [ \"$x\" = one ]; do read x; done; while read y; do :; done; echo end";
    let start = ExecStart { tty: Some(tty), ..argv(&["/bin/sh", "-c", script]) };
    let mut exec = Exec::start(&instance, start).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for size in
        [Size { rows: 0, cols: 0 }, Size { rows: 65535, cols: 65535 }, Size { rows: 9, cols: 8 }]
    {
        exec.say(ExecInput::Resize(size)).await;
        // A shell that is told again while it is in its trap may take both for one.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let ran = exec.finish(b"one\n").await;
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("31 97") && text.contains("xterm-test"), "{text}");
    assert!(text.contains("9 8") && text.contains("end"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_protocol_is_answered_and_ended() {
    let instance = Instance::start();
    for bytes in
        [&b"\x01\xff\xff\xff\xff"[..], b"\x63\0\0\0\0", b"\x02\0\0\0\x01x", b"\x01\0\0\0\x02{]"]
    {
        let (_, mut stream) = instance.open("{\"target\":\"exec\"}\n");
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        assert_eq!(answer.first(), Some(&5), "a failure: {answer:?}");
    }
}
