//! The SSH gateway's tunnel protocol. The jump server is tested with the real ssh, in `e2e`.

use anyhow::Result;
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

async fn ask(host: &TestHost, line: &str) -> Result<(String, BufReader<TcpStream>)> {
    let mut stream = BufReader::new(TcpStream::connect(host.host.ssh_address()).await?);
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok((answer, stream))
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_keeps_a_half_close() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created =
        host.post("/api/vps/create", json!({"name": "web", "ssh_key_mode": "none"})).await?;
    let task = created.text("task_id");
    for reference in [task, "web", &task[..12]] {
        // What the client sends right behind its line belongs to the instance.
        let (answer, mut stream) = ask(&host, &format!("REQUEST_TUNNEL {reference}\nping")).await?;
        assert_eq!(answer, "SUCCESS\n");
        stream.shutdown().await?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await?;
        assert_eq!(rest, format!("hello from {task}\nping"));
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_in_one_line() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    assert_eq!(host.post("/api/vps/create", json!({"name": "nossh"})).await?.status, 200);
    let with_ssh = json!({"name": "web", "ssh_key_mode": "none"});
    assert_eq!(host.post("/api/vps/create", with_ssh).await?.status, 200);
    let cases = [
        ("REQUEST_TUNNEL 999\n", "there is no VPS '999'"),
        ("REQUEST_TUNNEL nossh\n", "created without --ssh"),
        ("GET / HTTP/1.1\r\n", "this is the SSH gateway"),
        (&"x".repeat(4000), "this is the SSH gateway"),
    ];
    for (line, reason) in cases {
        let (answer, _) = ask(&host, line).await?;
        assert!(answer.starts_with("ERROR ") && answer.contains(reason), "{line:?}: {answer:?}");
    }
    runner.disconnect().await;
    let (answer, _) = ask(&host, "REQUEST_TUNNEL web\n").await?;
    assert!(answer.contains("offline"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_greeting_without_end_is_answered_after_its_bound_and_others_go_on() -> Result<()> {
    let host = TestHost::start().await?;
    let mut endless = TcpStream::connect(host.host.ssh_address()).await?;
    let flood = async {
        let block = [b'R'; 65536];
        // Ten megabytes, or as much as is taken.
        for _ in 0..160 {
            if endless.write_all(&block).await.is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        let _ = endless.read_to_end(&mut answer).await;
    };
    // One that says nothing at all beside it.
    let _silent = TcpStream::connect(host.host.ssh_address()).await?;
    let asked = async { ask(&host, "REQUEST_TUNNEL nobody\n").await.map(|(answer, _)| answer) };
    let limit = std::time::Duration::from_secs(5);
    let both = tokio::time::timeout(limit, async { tokio::join!(flood, asked) });
    let ((), answer) = both.await?;
    assert!(answer?.starts_with("ERROR "));
    Ok(())
}
