//! The agent of a virtual machine, as a process: who gets in by its port, and what they find.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod support;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kohakuriver_agent::{AgentConfig, CONFIG_FILE, GUEST_SECRET_FILE, SOCKET_FILE};
use kohakuriver_agent_protocol::exec::{ExecExit, ExecInput, ExecOutput, ExecStart};
use kohakuriver_agent_protocol::files::{Ask, split};
use kohakuriver_agent_protocol::proof::{ProofError, prove_to_agent};
use kohakuriver_agent_protocol::{
    FrameReader, GuestSecret, StreamReply, StreamTarget, read_reply, write, write_request,
};
use support::{agent_program, free_port, noise, wait_until, write_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Guest {
    dir: tempfile::TempDir,
    agent: Child,
    port: u16,
    secret: GuestSecret,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

fn config() -> AgentConfig {
    AgentConfig {
        task_id: "7".into(),
        hostname: "test".into(),
        ssh: false,
        authorized_keys: vec![],
        env: [("FROM_CONFIG".to_owned(), "config".to_owned())].into(),
        serve_port_22: false,
    }
}

impl Guest {
    fn start() -> Self {
        Self::start_on(free_port())
    }

    fn start_on(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = GuestSecret::random();
        write_config(dir.path(), &config());
        std::fs::write(dir.path().join(GUEST_SECRET_FILE), secret.to_text()).unwrap();
        let agent = Command::new(agent_program())
            .arg("guest")
            .args([dir.path(), dir.path()])
            .arg(port.to_string())
            .env("INVOCATION_ID", "init's own")
            .spawn()
            .unwrap();
        wait_until("the agent is up", || dir.path().join(SOCKET_FILE).exists());
        Self { dir, agent, port, secret }
    }

    async fn connect(&self) -> TcpStream {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)).await {
                Ok(stream) => return stream,
                Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("the port stays closed: {error}"),
            }
        }
    }

    async fn open(&self, target: StreamTarget) -> (TcpStream, StreamReply) {
        let mut stream = self.connect().await;
        prove_to_agent(&mut stream, &self.secret).await.unwrap();
        write_request(&mut stream, &target).await.unwrap();
        let reply = read_reply(&mut stream).await.unwrap();
        (stream, reply)
    }

    async fn send_settings(&self, text: &[u8]) -> StreamReply {
        let (mut stream, reply) = self.open(StreamTarget::Settings).await;
        assert_eq!(reply, StreamReply::Ready);
        stream.write_all(text).await.unwrap();
        stream.shutdown().await.unwrap();
        read_reply(&mut stream).await.unwrap()
    }

    async fn sh(&self, script: &str) -> (String, Option<ExecExit>) {
        let (stream, reply) = self.open(StreamTarget::Exec).await;
        assert_eq!(reply, StreamReply::Ready);
        let (read, mut writer) = stream.into_split();
        let argv = ["/bin/sh", "-c", script].map(Into::into).to_vec();
        write(&mut writer, &ExecInput::Start(ExecStart { argv, ..ExecStart::default() }))
            .await
            .unwrap();
        let mut reader: FrameReader<_, ExecOutput> = FrameReader::new(read, &[]);
        let (mut out, mut exit) = (Vec::new(), None);
        while let Some(message) = reader.next().await.unwrap() {
            match message {
                ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => out.extend_from_slice(&data),
                ExecOutput::Exit(code) => exit = Some(code),
                ExecOutput::StdinTaken(_) | ExecOutput::Failed(_) => {}
            }
        }
        (String::from_utf8(out).unwrap(), exit)
    }
}

#[tokio::test]
async fn a_runner_that_proves_the_secret_finds_the_usual_agent() {
    let guest = Guest::start();
    let (_, reply) = guest.open(StreamTarget::Ping).await;
    assert!(matches!(reply, StreamReply::Pong { .. }));

    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let (mut stream, reply) = guest.open(StreamTarget::Tcp { port }).await;
    assert_eq!(reply, StreamReply::Ready);
    let data = noise(5_000_000);
    stream.write_all(&data).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert!(back == data);

    let (out, exit) = guest.sh("echo $FROM_CONFIG; echo $INVOCATION_ID; exit 3").await;
    assert_eq!((out.as_str(), exit), ("config\n\n", Some(ExecExit::Code(3))));
}

#[tokio::test]
async fn files_are_served_over_the_guests_port_whole() {
    let guest = Guest::start();
    let path = guest.dir.path().join("large");
    let data = noise(3_000_000);
    std::fs::write(&path, &data).unwrap();
    let (stream, reply) = guest.open(StreamTarget::Files).await;
    assert_eq!(reply, StreamReply::Ready);
    let (mut orders, mut answers) = split(stream);
    let ask = Ask::Read { path: path.as_os_str().into(), offset: 0, limit: None };
    orders.ask(ask).await.unwrap();
    orders.flush().await.unwrap();
    let mut read = Vec::new();
    loop {
        use kohakuriver_agent_protocol::files::FilesOutput;
        let answer = answers.next().await.unwrap();
        if let FilesOutput::Data(data) = answer {
            read.extend_from_slice(&data);
        } else if !matches!(answer, FilesOutput::Found(_)) {
            assert!(matches!(answer, FilesOutput::Done { .. }), "{answer:?}");
            break;
        }
    }
    assert!(read == data);
}

#[tokio::test]
async fn whoever_cannot_prove_the_secret_hears_a_nonce_and_no_more() {
    let guest = Guest::start();
    let mut stream = guest.connect().await;
    let wrong = prove_to_agent(&mut stream, &GuestSecret::random()).await;
    assert!(matches!(wrong, Err(ProofError::Rejected)), "{wrong:?}");

    let mut stream = guest.connect().await;
    stream.write_all(b"{\"target\":\"ping\"}\n").await.unwrap();
    stream.write_all(&[b'x'; 100]).await.unwrap();
    let mut heard = Vec::new();
    // It may be a reset: what it did not read is thrown away.
    let _ = stream.read_to_end(&mut heard).await;
    assert!(heard.len() <= 40 && !heard.windows(4).any(|word| word == b"pong"), "{heard:?}");
}

#[tokio::test]
async fn connections_that_prove_nothing_do_not_keep_the_runner_out() {
    let guest = Guest::start();
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(guest.connect().await);
    }
    let (_, reply) = guest.open(StreamTarget::Ping).await;
    assert!(matches!(reply, StreamReply::Pong { .. }));
    // The last of them are closed when their time is up, the others made room.
    let closed = async {
        for mut stream in idle {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), closed).await.unwrap();
}

#[tokio::test]
async fn new_settings_take_the_old_ones_place_or_are_refused_with_the_reason() {
    let guest = Guest::start();
    let file = guest.dir.path().join(CONFIG_FILE);
    let mut new = config();
    new.authorized_keys = vec!["ssh-ed25519 AAAA".into()];
    let text = serde_json::to_vec(&new).unwrap();
    assert_eq!(guest.send_settings(&text).await, StreamReply::Ready);
    assert_eq!(std::fs::read(&file).unwrap(), text);

    let refused = |reply| {
        let StreamReply::Refused { error } = reply else { panic!("{reply:?}") };
        error
    };
    new.task_id = "8".into();
    let others = serde_json::to_vec(&new).unwrap();
    let why = refused(guest.send_settings(&others).await);
    assert_eq!(why, "these are the settings of 8, this is 7");
    assert!(refused(guest.send_settings(b"{}").await).contains("not understood"));
    // Cut in the middle.
    assert!(refused(guest.send_settings(&text[..20]).await).contains("not understood"));
    assert_eq!(std::fs::read(&file).unwrap(), text);
}

#[tokio::test]
async fn orphans_are_inits_and_a_stop_ends_what_the_agent_started() {
    let mut guest = Guest::start();
    let agent = guest.agent.id();
    let (out, _) = guest.sh("(setsid sleep 300 >/dev/null 2>&1 & echo $!)").await;
    let orphan = out.trim().to_owned();
    let parent = || {
        let status = std::fs::read_to_string(format!("/proc/{orphan}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().to_owned()
    };
    assert_ne!(parent(), agent.to_string());
    Command::new("kill").arg(&orphan).status().unwrap();

    let (stream, _) = guest.open(StreamTarget::Exec).await;
    let (_read, mut writer) = stream.into_split();
    let argv = ["sleep", "301"].map(Into::into).to_vec();
    write(&mut writer, &ExecInput::Start(ExecStart { argv, ..ExecStart::default() }))
        .await
        .unwrap();
    let runs = || {
        let mut pgrep = Command::new("pgrep");
        pgrep.args(["-P", &agent.to_string()]).output().unwrap().status.success()
    };
    wait_until("the program runs", runs);
    Command::new("kill").arg(agent.to_string()).status().unwrap();
    assert!(guest.agent.wait().unwrap().success());
    assert!(!guest.dir.path().join(SOCKET_FILE).exists());
}

#[tokio::test]
async fn a_port_that_is_taken_is_served_once_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = Guest::start_on(taken.local_addr().unwrap().port());
    drop(taken);
    let (_, reply) = guest.open(StreamTarget::Ping).await;
    assert!(matches!(reply, StreamReply::Pong { .. }));
}
