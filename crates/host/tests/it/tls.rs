//! TLS for people: the served certificate, the clients that trust it, and the traffic through it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use kohakuriver_host::HttpsMode;
use kohakuriver_testkit::{FakeRunner, Reaction, TestHost};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

/// A second for the files to settle, one for the check, and one for a slow computer.
const TAKEN_UP_LIMIT: Duration = Duration::from_secs(60);

async fn own_ca_host() -> Result<TestHost> {
    TestHost::start_with(|config| {
        config.https = HttpsMode::OwnCa;
        config.names = vec!["river.lab".to_owned()];
    })
    .await
}

async fn files_host(dir: &Path) -> Result<TestHost> {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    TestHost::start_with(|config| config.https = HttpsMode::Files { cert, key }).await
}

/// A self-signed certificate and its key, as another program writes them.
fn write_pair(dir: &Path) -> Result<CertificateDer<'static>> {
    let made = rcgen::generate_simple_self_signed(vec!["river.lab".to_owned()])?;
    std::fs::write(dir.join("cert.pem"), made.cert.pem())?;
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(made.cert.der().clone())
}

async fn connect(
    host: &TestHost,
    root: &CertificateDer<'static>,
    name: &'static str,
) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(host.host.api_address()).await?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name.try_into()?, stream).await?)
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn ca(host: &TestHost) -> Result<CertificateDer<'static>> {
    let answer = host.get("/api/auth/ca").await?;
    Ok(CertificateDer::from_pem_slice(answer.text("ca_pem").as_bytes())?)
}

/// Opens a stream to the instance's SSH, and reads the fake's first bytes.
async fn open_stream<S>(mut stream: S, task: &str) -> Result<S>
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let request = format!(
        "GET /api/vps/{task}/stream?target=ssh HTTP/1.1\r\nHost: river.lab\r\n\
         Connection: upgrade\r\nUpgrade: kohakuriver-stream\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let greeting = format!("\r\n\r\nhello from {task}\n");
    while !head.ends_with(greeting.as_bytes()) {
        head.push(
            stream.read_u8().await.with_context(|| String::from_utf8_lossy(&head).into_owned())?,
        );
    }
    anyhow::ensure!(head.starts_with(b"HTTP/1.1 101 "));
    Ok(stream)
}

async fn echoes(stream: &mut TlsStream<TcpStream>, text: &[u8]) -> Result<()> {
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    anyhow::ensure!(back == text);
    Ok(())
}

async fn create(host: &TestHost) -> Result<String> {
    let body = json!({"name": "web", "ssh_key_mode": "none"});
    Ok(host.post("/api/vps/create", body).await?.text("task_id").to_owned())
}

#[tokio::test]
async fn own_certificate_is_valid_for_names_and_addresses() -> Result<()> {
    let host = own_ca_host().await?;
    let root = ca(&host).await?;
    for name in ["river.lab", "localhost", "127.0.0.1", "::1"] {
        let stream = connect(&host, &root, name).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    }
    assert!(connect(&host, &root, "evil.example").await.is_err());
    let strangers = rcgen::generate_simple_self_signed(vec!["river.lab".to_owned()])?;
    assert!(connect(&host, strangers.cert.der(), "river.lab").await.is_err());
    Ok(())
}

#[tokio::test]
async fn ca_with_printed_fingerprint_is_public() -> Result<()> {
    let host = own_ca_host().await?;
    let answer = host.get("/api/auth/ca").await?;
    assert_eq!(Some(answer.text("fingerprint")), host.host.people_fingerprint().as_deref());
    assert!(!answer.text("ca_pem").contains("PRIVATE"));
    let plain = TestHost::start().await?;
    assert_eq!(plain.get("/api/auth/ca").await?.status, 404);
    assert_eq!(plain.host.people_fingerprint(), None);
    Ok(())
}

#[tokio::test]
async fn tls_1_2_is_the_oldest_accepted_version() -> Result<()> {
    let host = own_ca_host().await?;
    let root = reqwest::Certificate::from_der(&ca(&host).await?)?;
    let url = format!("https://{}/api/health", host.host.api_address());
    let client = |version| {
        reqwest::Client::builder().tls_certs_only([root.clone()]).tls_version_max(version).build()
    };
    let answer = client(reqwest::tls::Version::TLS_1_2)?.get(&url).send().await?;
    assert_eq!(answer.status(), 200);
    // None of our clients speaks anything older, so its hello is written by hand: TLS 1.1,
    // one cipher suite, no compression.
    let mut old = TcpStream::connect(host.host.api_address()).await?;
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 2, 0xc0, 0x13, 1, 0]);
    old.write_all(&hello).await?;
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await?;
    assert_eq!(answer.first(), Some(&0x15), "an alert, no handshake: {answer:?}");
    Ok(())
}

#[tokio::test]
async fn own_certificate_is_renewed_before_expiry() -> Result<()> {
    let host = own_ca_host().await?;
    let root = ca(&host).await?;
    let first = shown(&connect(&host, &root, "river.lab").await?);
    assert!(first == shown(&connect(&host, &root, "river.lab").await?));
    host.advance(Duration::from_secs(60 * 24 * 3600 + 1));
    let deadline = tokio::time::Instant::now() + TAKEN_UP_LIMIT;
    // It starts in the future, so no other clock accepts it yet.
    while connect(&host, &root, "river.lab").await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the old one is still shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn replaced_certificate_serves_new_connections_only() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = write_pair(dir.path())?;
    let host = files_host(dir.path()).await?;
    let mut there = connect(&host, &first, "river.lab").await?;
    let second = write_pair(dir.path())?;
    let deadline = tokio::time::Instant::now() + TAKEN_UP_LIMIT;
    while connect(&host, &second, "river.lab").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new one is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(connect(&host, &first, "river.lab").await.is_err());
    there
        .write_all(b"GET /api/health HTTP/1.1\r\nHost: river.lab\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    there.read_to_string(&mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "a name of the certificate is ours: {answer}");
    Ok(())
}

#[tokio::test]
async fn mismatched_certificate_files_change_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = write_pair(dir.path())?;
    let host = files_host(dir.path()).await?;
    let spare = tempfile::tempdir()?;
    let second = write_pair(spare.path())?;
    std::fs::copy(spare.path().join("cert.pem"), dir.path().join("cert.pem"))?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    connect(&host, &first, "river.lab").await?;
    std::fs::write(dir.path().join("key.pem"), "-----BEGIN RUBBISH-----\n")?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    connect(&host, &first, "river.lab").await?;
    std::fs::remove_file(dir.path().join("key.pem"))?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    connect(&host, &first, "river.lab").await?;
    std::fs::rename(spare.path().join("key.pem"), dir.path().join("key.pem"))?;
    let deadline = tokio::time::Instant::now() + TAKEN_UP_LIMIT;
    while connect(&host, &second, "river.lab").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new one is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn host_does_not_start_with_mismatched_certificate_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let spare = tempfile::tempdir()?;
    write_pair(dir.path())?;
    write_pair(spare.path())?;
    std::fs::copy(spare.path().join("cert.pem"), dir.path().join("cert.pem"))?;
    let error = files_host(dir.path()).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("cert.pem") && error.contains("do not belong together"), "{error}");
    std::fs::write(dir.path().join("cert.pem"), "")?;
    let error = files_host(dir.path()).await.map(drop).unwrap_err().to_string();
    assert!(error.ends_with("cert.pem holds no certificate in PEM"), "{error}");
    std::fs::remove_file(dir.path().join("cert.pem"))?;
    let error = files_host(dir.path()).await.map(drop).unwrap_err().to_string();
    assert!(error.starts_with("cannot read") && error.ends_with("cert.pem"), "{error}");
    Ok(())
}

#[tokio::test]
async fn stream_over_tls_forwards_bulk_and_keeps_half_close() -> Result<()> {
    let host = own_ca_host().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let task = create(&host).await?;
    let root = ca(&host).await?;
    let mut stream = open_stream(connect(&host, &root, "river.lab").await?, &task).await?;
    echoes(&mut stream, b"ping").await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let there: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let sent = there.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(&sent).await?;
        writer.shutdown().await
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).await?;
    sending.await??;
    assert!(back == there);
    Ok(())
}

#[tokio::test]
async fn websocket_works_over_tls() -> Result<()> {
    let host = own_ca_host().await?;
    let _runner = FakeRunner::join(&host, "n1", Reaction::Obey).await?;
    let task = create(&host).await?;
    let stream = connect(&host, &ca(&host).await?, "river.lab").await?;
    let url = format!("wss://river.lab/ws/task/{task}/session");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
    let hello = socket.next().await.context("it says hello")??;
    assert_eq!(hello.into_data(), format!("hello from {task}\n"));
    socket.send(Message::binary(b"ping".as_slice())).await?;
    let echo = socket.next().await.context("it answers")??;
    assert_eq!(echo.into_data(), "ping");
    Ok(())
}
