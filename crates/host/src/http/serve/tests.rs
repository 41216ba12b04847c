use std::net::SocketAddr;

use axum::Extension;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::client_address::{ClientAddress, Secure};

/// Serves a port that responds with the connection's facts as handlers see them.
async fn start(tls: Option<TlsAcceptor>, proxies: &[&str]) -> (SocketAddr, CancellationToken) {
    let client_facts = async |Extension(client): Extension<ClientAddress>,
                              Extension(secure): Extension<Secure>| {
        format!("{} {}", client.0, secure.0)
    };
    let shutdown = CancellationToken::new();
    let server = Server {
        router: Router::new().route("/", get(client_facts)),
        tls,
        proxies: proxies.iter().map(|proxy| proxy.parse().unwrap()).collect(),
        deadlines: Deadlines::default(),
        shutdown: shutdown.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { accept(Arc::new(server), listener, &TaskTracker::new()).await });
    (address, shutdown)
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, headers: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: river\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn client_facts(address: SocketAddr, headers: &str) -> String {
    let answer = ask(TcpStream::connect(address).await.unwrap(), headers).await;
    answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

fn tls(dir: &std::path::Path) -> (TlsAcceptor, tokio_rustls::TlsConnector) {
    let ca = kohakuriver_runner_link::pki::Ca::load_or_create(dir, crate::Clock::System.now_ms())
        .unwrap();
    let names = ["127.0.0.1".to_owned()];
    let (own, _) = ca.issue_people(&names, crate::Clock::System.now_ms()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.chain[1].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(own.chain, own.key)
        .unwrap();
    (Arc::new(server).into(), Arc::new(client).into())
}

#[tokio::test]
async fn client_address_headers_count_from_trusted_proxies_only() {
    let headers = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n";
    let (address, _shutdown) = start(None, &[]).await;
    assert_eq!(client_facts(address, headers).await, "127.0.0.1 false");
    let (address, _shutdown) = start(None, &["10.0.0.0/8"]).await;
    assert_eq!(client_facts(address, headers).await, "127.0.0.1 false");
    let (address, _shutdown) = start(None, &["127.0.0.0/8"]).await;
    assert_eq!(client_facts(address, headers).await, "203.0.113.7 true");
    assert_eq!(client_facts(address, "").await, "127.0.0.1 false");
}

#[tokio::test]
async fn tls_request_is_secure_regardless_of_headers() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, connector) = tls(dir.path());
    let (address, _shutdown) = start(Some(acceptor), &[]).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    let answer = ask(stream, "X-Forwarded-Proto: http\r\n").await;
    assert!(answer.ends_with("127.0.0.1 true"), "{answer}");
}

#[tokio::test]
async fn plain_http_on_tls_port_gets_https_hint() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, _) = tls(dir.path());
    let (address, _shutdown) = start(Some(acceptor), &[]).await;
    let answer = ask(TcpStream::connect(address).await.unwrap(), "").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("use https://river/") && answer.contains("https_only"), "{answer}");
    assert!(!answer.contains("true") && !answer.contains("false"), "{answer}");
}

#[tokio::test]
async fn silent_client_delays_neither_others_nor_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, connector) = tls(dir.path());
    let (address, shutdown) = start(Some(acceptor), &[]).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    assert!(ask(stream, "").await.ends_with("true"));
    shutdown.cancel();
    let end = timeout(Duration::from_secs(60), silent.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap().unwrap(), 0);
}
