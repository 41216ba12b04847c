//! The SSH gateway's tunnel protocol. The jump server is tested with the real ssh, in `e2e`.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

async fn ask(host: &TestHost, line: &str) -> Result<(String, BufReader<TcpStream>)> {
    let mut stream = BufReader::new(TcpStream::connect(host.host.ssh_address()).await?);
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok((answer, stream))
}

#[tokio::test]
async fn tunnel_forwards_both_ways_and_keeps_half_close() -> Result<()> {
    let host = TestHost::start().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let created =
        host.post("/api/vps/create", json!({"name": "web", "ssh_key_mode": "none"})).await?;
    let task = created.text("task_id");
    for reference in [task, "web", &task[..12]] {
        // Bytes that the client sends right behind its line belong to the instance.
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
async fn unreachable_target_is_refused_in_one_line() -> Result<()> {
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
async fn endless_greeting_is_refused_and_others_are_served() -> Result<()> {
    let host = TestHost::start().await?;
    let mut endless = TcpStream::connect(host.host.ssh_address()).await?;
    let flood = async {
        let block = [b'R'; 65536];
        // Ten megabytes, or as much as is accepted.
        for _ in 0..160 {
            if endless.write_all(&block).await.is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        let _ = endless.read_to_end(&mut answer).await;
    };
    // A silent connection beside it.
    let _silent = TcpStream::connect(host.host.ssh_address()).await?;
    let asked = async { ask(&host, "REQUEST_TUNNEL nobody\n").await.map(|(answer, _)| answer) };
    let limit = Duration::from_secs(5);
    let both = tokio::time::timeout(limit, async { tokio::join!(flood, asked) });
    let ((), answer) = both.await?;
    assert!(answer?.starts_with("ERROR "));
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(30);

async fn first_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = String::new();
    tokio::time::timeout(LIMIT, BufReader::new(stream).read_line(&mut line)).await??;
    Ok(line)
}

#[tokio::test]
async fn silent_client_gets_the_ssh_banner() -> Result<()> {
    let host = TestHost::start_with(|config| {
        config.deadlines.ssh_login = Duration::from_secs(3600);
    })
    .await?;
    let mut silent = TcpStream::connect(host.host.ssh_address()).await?;
    assert_eq!(first_line(&mut silent).await?, "SSH-2.0-KohakuRiver\r\n");
    Ok(())
}

#[tokio::test]
async fn client_without_login_is_closed_at_deadline() -> Result<()> {
    for enabled in [false, true] {
        let host = TestHost::start_with(|config| {
            config.auth.enabled = enabled;
            config.deadlines.ssh_login = Duration::from_secs(1);
        })
        .await?;
        for said in ["", "S", "SSH-2.0-x\r\n", "REQUEST_TUNNEL ", "x"] {
            let mut client = TcpStream::connect(host.host.ssh_address()).await?;
            client.write_all(said.as_bytes()).await?;
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(LIMIT, client.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "{said:?} stays open");
        }
    }
    Ok(())
}

#[tokio::test]
async fn flood_of_unauthenticated_peers_leaves_gateway_usable() -> Result<()> {
    kohakuriver_net::raise_file_limit()?;
    let host = TestHost::start_with(|config| {
        config.deadlines.ssh_login = Duration::from_secs(3600);
    })
    .await?;
    let mut flood = Vec::new();
    for _ in 0..600 {
        let mut client = TcpStream::connect(host.host.ssh_address()).await?;
        client.write_all(b"R").await?;
        flood.push(client);
    }
    let asked = tokio::time::timeout(LIMIT, ask(&host, "REQUEST_TUNNEL nothing\n"));
    assert!(asked.await??.0.starts_with("ERROR there is no VPS"));
    // The oldest were closed, and the newest are still open.
    let mut block = [0; 64];
    for client in flood.iter_mut().take(50) {
        tokio::time::timeout(LIMIT, client.read(&mut block)).await?.ok();
    }
    let newest = flood.last_mut().unwrap();
    newest.write_all(b"EQUEST_TUNNEL nothing\n").await?;
    assert!(first_line(newest).await?.starts_with("ERROR there is no VPS"));
    Ok(())
}

/// Returns the real client's message when it is refused.
async fn ssh(host: &TestHost, arguments: &[&str]) -> Result<String> {
    let port = host.host.ssh_address().port().to_string();
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-p", &port])
        .args(arguments)
        .arg("you@127.0.0.1")
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, ssh.output()).await??;
    anyhow::ensure!(!output.status.success(), "it was not refused");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn refused_jump_says_why() -> Result<()> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    for name in ["frozen", "off", "away"] {
        let wish = json!({"name": name, "ssh_key_mode": "none"});
        assert_eq!(host.post("/api/vps/create", wish).await?.status, 200);
    }
    assert_eq!(host.post("/api/vps/create", json!({"name": "nossh"})).await?.status, 200);
    assert_eq!(host.post("/api/vps/pause/frozen", json!({})).await?.status, 202);
    assert_eq!(host.post("/api/vps/stop/off", json!({})).await?.status, 202);
    host.wait_for("frozen", "paused").await?;
    host.wait_for("off", "stopped").await?;
    for (target, reason) in [
        ("frozen", "VPS 'frozen' is paused; kohakuriver vps resume frozen"),
        ("off", "VPS 'off' is stopped; kohakuriver vps restart off"),
        ("nothing", "there is no VPS 'nothing'"),
        ("nossh", "VPS 'nossh' was created without --ssh"),
    ] {
        let said = ssh(&host, &["-W", &format!("{target}:22")]).await?;
        assert!(said.contains(reason), "{target}: {said}");
    }
    runner.disconnect().await;
    let said = ssh(&host, &["-W", "away:22"]).await?;
    assert!(said.contains("node 'n1' is offline"), "{said}");
    Ok(())
}

#[tokio::test]
async fn shell_at_gateway_prints_the_jump_port() -> Result<()> {
    let host = TestHost::start().await?;
    let said = ssh(&host, &["-T"]).await?;
    let port = host.host.ssh_address().port();
    assert!(said.contains(&format!("ssh -J <this host>:{port} root@")), "{said}");
    Ok(())
}
