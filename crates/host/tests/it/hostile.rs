//! Peers that violate the protocol: an agent that sends without end, a service that reads nothing,
//! clients that send slowly or not at all.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use kohakuriver_agent_protocol::files::{Ask, Entry, FilesInput, FilesOutput, Kind, Time, Word};
use kohakuriver_agent_protocol::watch::{Change, Event, Method, WatchOutput, Watching};
use kohakuriver_agent_protocol::{FrameReader, write};
use kohakuriver_runner_link::protocol::StreamTarget;
use kohakuriver_testkit::{AgentStream, FakeRunner, TestHost};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

fn entry(name: &str, size: u64) -> Entry {
    Entry {
        name: Word::from(name),
        kind: Kind::File,
        size,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time(1, 0),
        target: None,
        owner: None,
    }
}

/// Sends the beginning of a valid reply, and then data for as long as the peer reads.
async fn endless_files(stream: AgentStream) -> Result<()> {
    let (read, mut write_half) = split(stream);
    let mut asked = FrameReader::<_, FilesInput>::new(read, &[]);
    while let Some(FilesInput::Ask(ask)) = asked.next().await? {
        let found = FilesOutput::Found(entry("/x", 10));
        let more = if let Ask::Stat { .. } = ask {
            write(&mut write_half, &found).await?;
            continue;
        } else if let Ask::Read { path, .. } = ask {
            write(&mut write_half, &found).await?;
            let empty = path == Word::from("/empty");
            FilesOutput::Data(if empty { Bytes::new() } else { vec![0; 64 * 1024].into() })
        } else if let Ask::List { path, .. } = ask {
            FilesOutput::Entries(match path {
                Word::Text(path) if path == "/names" => vec![entry(&"x".repeat(500_000), 0)],
                Word::Text(path) if path == "/empty" => Vec::new(),
                Word::Text(_) | Word::Bytes(_) => vec![entry("x", 0); 200],
            })
        } else {
            FilesOutput::Done { more: true }
        };
        while write(&mut write_half, &more).await.is_ok() {}
        return Ok(());
    }
    Ok(())
}

async fn endless_news(mut stream: AgentStream) -> Result<()> {
    let path = Word::from("x".repeat(500_000).as_str());
    let watching = Watching { paths: vec![], method: Method::Inotify, interval_ms: None };
    write(&mut stream, &WatchOutput::Watching(watching)).await?;
    let change = WatchOutput::Change(Change { event: Event::Modify, path, is_dir: false });
    while write(&mut stream, &change).await.is_ok() {}
    Ok(())
}

async fn hostile(host: &TestHost) -> Result<FakeRunner> {
    let runner = FakeRunner::join_with_agent(host, "n1", |open, stream| async move {
        if open.target == StreamTarget::Files {
            let _ = endless_files(stream).await;
        } else if open.target == StreamTarget::Watch {
            let _ = endless_news(stream).await;
        } else {
            // A service that reads nothing.
            std::future::pending::<()>().await;
            drop(stream);
        }
    })
    .await?;
    let made = host.post("/api/vps/create", json!({"name": "web"})).await?;
    anyhow::ensure!(made.status == 200, "{made:?}");
    Ok(runner)
}

#[tokio::test]
async fn oversized_agent_reply_ends_the_stream() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = hostile(&host).await?;
    for path in [
        "read?path=/x&limit=10",
        "read?path=/x&limit=5",
        "read?path=/x",
        "read?path=/empty",
        "list?path=/",
        "list?path=/names",
        "list?path=/empty",
    ] {
        let url = format!("/api/fs/web/{path}");
        let asked = tokio::time::timeout(LIMIT, host.get(&url));
        let answer = asked.await.with_context(|| path.to_owned())??;
        assert_eq!((answer.status, answer.text("code")), (502, "invalid_response"), "{path}");
        assert!(answer.text("hint").contains("vps restart"), "{answer:?}");
    }
    // A streamed response is aborted, so that no client takes it for the file.
    let mut stream = send(&host, "GET /api/fs/web/raw?path=/x HTTP/1.1\r\n\r\n").await?;
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await?.ok();
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    assert!(body.is_empty(), "{text}");
    Ok(())
}

#[tokio::test]
async fn watch_with_overlong_path_ends() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = hostile(&host).await?;
    let url = format!("ws://{}/ws/fs/web/watch?paths=/x", host.host.api_address());
    let (mut socket, _) = tokio_tungstenite::client_async(
        url.as_str(),
        TcpStream::connect(host.host.api_address()).await?,
    )
    .await?;
    let mut told = String::new();
    let reading = async {
        while let Some(Ok(message)) = futures_util::StreamExt::next(&mut socket).await {
            if let Ok(text) = message.to_text() {
                told.push_str(text);
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await?;
    assert!(told.contains("sent an oversized reply") && told.len() < 1000, "{}", told.len());
    Ok(())
}

/// Sends a request's beginning. The line ends it stands for are in `text`.
async fn send(host: &TestHost, text: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(host.host.api_address()).await?;
    let (line, rest) = text.split_once("\r\n").context("a line")?;
    let head = format!("{line}\r\nHost: localhost\r\nConnection: close\r\n{rest}");
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

#[tokio::test]
async fn slow_body_gets_error_at_deadline() -> Result<()> {
    let host = TestHost::start_with(|config| {
        config.auth.enabled = true;
        config.deadlines.request_body = Duration::from_secs(1);
    })
    .await?;
    let head = "POST /api/auth/login HTTP/1.1\r\n\
                Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
    let mut stream = send(&host, head).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("slow_body"), "{answer}");
    let head = "POST /api/auth/login HTTP/1.1\r\n\
                Content-Type: application/json\r\nContent-Length: 70000\r\n\r\n";
    let mut stream = send(&host, &format!("{head}{}", " ".repeat(70_000))).await?;
    answer.clear();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await?.ok();
    assert!(answer.starts_with("HTTP/1.1 413 "), "a stranger's body is short: {answer}");
    Ok(())
}

#[tokio::test]
async fn slow_head_is_closed_at_deadline() -> Result<()> {
    let host = TestHost::start_with(|config| {
        config.deadlines.request_head = Duration::from_secs(1);
    })
    .await?;
    for said in ["", "GET /api/health HTTP/1.1\r\nHost"] {
        let mut stream = TcpStream::connect(host.host.api_address()).await?;
        stream.write_all(said.as_bytes()).await?;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{said:?} stays open");
    }
    Ok(())
}

#[tokio::test]
async fn flood_of_slow_requests_leaves_other_clients_served() -> Result<()> {
    kohakuriver_net::raise_file_limit()?;
    let host = TestHost::start_with(|config| {
        config.auth.enabled = true;
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        // For as long as the test runs.
        config.deadlines.request_body = Duration::from_secs(3600);
        config.deadlines.request_head = Duration::from_secs(3600);
    })
    .await?;
    let alice = host.person("alice", "user").await?;
    let mut flood = Vec::new();
    for number in 0..800 {
        let head = match number {
            0..350 => "POST /api/auth/login HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
            700.. => {
                "POST /api/auth/login HTTP/1.1\r\nX-Forwarded-For: 192.0.2.7\r\n\
                  Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            }
            _ => "GET /api/health HTTP/1.1\r\nX: ",
        };
        flood.push(send(&host, head).await?);
    }
    let health = tokio::time::timeout(LIMIT, host.get("/api/health")).await??;
    assert_eq!(health.status, 200);
    let own = tokio::time::timeout(LIMIT, host.get_as(&alice, "/api/vps")).await??;
    assert_eq!(own.status, 200);
    // Behind a proxy the client is counted, not the proxy.
    let login = |client: &str| {
        format!(
            "POST /api/auth/login HTTP/1.1\r\nX-Forwarded-For: {client}\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        )
    };
    let mut other = send(&host, &login("192.0.2.8")).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, other.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    let mut same = send(&host, &login("192.0.2.7")).await?;
    answer.clear();
    tokio::time::timeout(LIMIT, same.read_to_string(&mut answer)).await??;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    Ok(())
}
