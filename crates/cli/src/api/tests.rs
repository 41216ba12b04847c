//! Tests of connections by https, against a minimal host.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kohakuriver_agent_protocol::StreamTarget;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::GlobalArgs;

const HEALTH: &str =
    r#"{"status":"ok","version":"9","nodes_online":0,"nodes_total":0,"vps_running":0}"#;

/// Creates a CA as hosts do.
struct Ca {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    fn fingerprint(&self) -> String {
        use rustls::pki_types::pem::PemObject;
        let der = rustls::pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        crate::trust::fingerprint(&der)
    }

    fn server(&self, name: &str) -> TlsAcceptor {
        use rustls::pki_types::pem::PemObject;
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let own = params.signed_by(&key, &self.issuer).unwrap();
        let ca = rustls::pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone(), ca], key)
            .unwrap();
        Arc::new(config).into()
    }
}

/// Answers the requests of these tests, and records their heads.
struct Fake {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// The CA that the host claims to have.
    async fn start(tls: Option<TlsAcceptor>, says: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let body = serde_json::json!({"ca_pem": says, "fingerprint": "a lie"}).to_string();
        let known = heads.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, body, heads) = (tls.clone(), body.clone(), known.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &body, &heads).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &body, &heads).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, heads }
    }

    fn head(&self) -> String {
        self.heads.lock().unwrap().pop().unwrap().to_ascii_lowercase()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ca: &str,
    heads: &Arc<Mutex<Vec<String>>>,
) {
    let (mut read, mut write) = split(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match read.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    heads.lock().unwrap().push(head.clone());
    if head.contains("/stream?") {
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                      Upgrade: kohakuriver-stream\r\n\r\nfirst ";
        write.write_all(answer.as_bytes()).await.unwrap();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        return write.shutdown().await.unwrap();
    }
    let (status, body) = match head.contains("/api/auth/ca") {
        true if ca.contains("\"\"") => ("404 Not Found", "{}"),
        true => ("200 OK", ca),
        false => ("200 OK", HEALTH),
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    write.write_all(answer.as_bytes()).await.unwrap();
    let _ = write.shutdown().await;
}

fn api(folder: &Path, host: &str, variables: &[(&str, &str)]) -> Api {
    let config = folder.join("config.toml").to_str().unwrap().to_owned();
    let flags = GlobalArgs { host: Some(host.to_owned()), ..GlobalArgs::default() };
    let settings = Settings::load(&flags, &|name| {
        let own = [("KOHAKURIVER_CONFIG", config.as_str())];
        let found = own.iter().chain(variables).find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    Api::new(&settings.unwrap())
}

#[tokio::test]
async fn host_of_unknown_ca_is_refused_until_user_trusts_it() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let fake = Fake::start(Some(ca.server("127.0.0.1")), &ca.pem).await;
    let url = format!("https://127.0.0.1:{}", fake.port);
    let api = api(folder.path(), &url, &[]);
    for failure in [
        api.health().await.unwrap_err(),
        api.stream("7", &StreamTarget::Ping).await.unwrap_err(),
        api.session_socket("7").await.unwrap_err(),
        api.doubt().await.unwrap().unwrap(),
    ] {
        assert_eq!(failure.exit_code(), 3);
        assert!(failure.message.contains(&ca.fingerprint()), "{failure:?}");
        assert!(failure.hint.unwrap().ends_with(&format!("kohakuriver auth login {url}")));
    }
    let fetched = api.fetch_ca().await.unwrap();
    assert_eq!((&fetched.fingerprint, &fetched.ca_pem), (&ca.fingerprint(), &ca.pem));
    let api = api.pin(&fetched.ca_pem).unwrap();
    assert!(api.doubt().await.unwrap().is_none());
    assert_eq!(api.health().await.unwrap().version, "9");
    assert!(fake.head().contains(&format!("host: 127.0.0.1:{}\r\n", fake.port)));
    let pin = folder.path().join(format!("ca/127.0.0.1:{}.pem", fake.port));
    assert_eq!(std::fs::metadata(pin).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn host_with_changed_ca_is_refused_with_warning() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let fake = Fake::start(Some(ca.server("127.0.0.1")), &ca.pem).await;
    let api = api(folder.path(), &format!("https://127.0.0.1:{}", fake.port), &[]);
    let api = api.pin(&Ca::new().pem).unwrap();
    let failure = api.health().await.unwrap_err();
    assert!(failure.message.contains("not the host that this machine knows"), "{failure:?}");
    assert!(failure.message.contains(&ca.fingerprint()), "{failure:?}");
    assert!(failure.hint.unwrap().contains("may be intercepted"));
}

#[tokio::test]
async fn ca_that_did_not_sign_the_chain_is_refused() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let fake = Fake::start(Some(ca.server("127.0.0.1")), &Ca::new().pem).await;
    let here = api(folder.path(), &format!("https://127.0.0.1:{}", fake.port), &[]);
    let failure = here.fetch_ca().await.unwrap_err();
    assert!(failure.message.contains("has not signed"), "{failure:?}");
    assert!(here.doubt().await.is_err());
    let fake = Fake::start(Some(ca.server("127.0.0.1")), "").await;
    let here = api(folder.path(), &format!("https://127.0.0.1:{}", fake.port), &[]);
    let failure = here.fetch_ca().await.unwrap_err();
    assert!(failure.hint.unwrap().contains("SSL_CERT_FILE"));
}

#[tokio::test]
async fn certificate_for_another_name_reports_its_names() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let fake = Fake::start(Some(ca.server("river.lab")), &ca.pem).await;
    let here = api(folder.path(), &format!("https://127.0.0.1:{}", fake.port), &[]);
    let here = here.pin(&ca.pem).unwrap();
    let failure = here.health().await.unwrap_err();
    assert!(failure.message.ends_with("not for that name but for: river.lab"), "{failure:?}");
    assert!(here.doubt().await.is_err(), "no trust for another name");
}

#[tokio::test]
async fn mixed_up_http_and_https_are_reported() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let here = api(folder.path(), &format!("https://127.0.0.1:{port}"), &[]);
    let failure = here.health().await.unwrap_err();
    assert!(failure.message.ends_with("does not use TLS"), "{failure:?}");
    assert!(failure.hint.unwrap().ends_with(&format!("--host http://127.0.0.1:{port}")));

    let https = Fake::start(Some(ca.server("127.0.0.1")), "").await;
    let plain = api(folder.path(), &format!("http://127.0.0.1:{}", https.port), &[]);
    let body = br#"{"detail":"","code":"https_only"}"#;
    let failure = plain.refusal(StatusCode::BAD_REQUEST, body);
    assert!(failure.hint.unwrap().starts_with(&format!("--host {}, ", here_https(&https))));
}

fn here_https(fake: &Fake) -> String {
    format!("https://127.0.0.1:{}", fake.port)
}

#[tokio::test]
async fn a_token_goes_with_every_kind_of_request() {
    let (folder, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let fake = Fake::start(Some(ca.server("127.0.0.1")), &ca.pem).await;
    let here = api(folder.path(), &here_https(&fake), &[("KOHAKURIVER_TOKEN", "secret")]);
    let here = here.pin(&ca.pem).unwrap();
    here.health().await.unwrap();
    assert!(fake.head().contains("authorization: bearer secret\r\n"));
    let mut stream = here.stream("7", &StreamTarget::Ping).await.unwrap();
    assert!(fake.head().contains("authorization: bearer secret\r\n"));
    stream.write_all(b"and more").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).await.unwrap();
    assert_eq!(echoed, "first and more", "over TLS, with a half-close");
    assert!(here.session_socket("7").await.is_err(), "the fake has no WebSocket");
    assert!(fake.head().contains("authorization: bearer secret\r\n"));
    here.fetch_ca().await.unwrap();
    assert!(!fake.head().contains("authorization"), "an untrusted host gets no credential");
}

#[tokio::test]
async fn login_token_is_for_its_host_and_environment_overrides_it() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(None, "").await;
    let host = format!("127.0.0.1:{}", fake.port);
    let kept = credentials::Credential { token: "kept".parse().unwrap(), user: None, id: None };
    credentials::store(folder.path(), &host, kept).unwrap();
    api(folder.path(), &host, &[]).health().await.unwrap();
    assert!(fake.head().contains("authorization: bearer kept\r\n"), "to this machine by http");
    api(folder.path(), &host, &[("KOHAKURIVER_TOKEN", "other")]).health().await.unwrap();
    assert!(fake.head().contains("authorization: bearer other\r\n"));
    let other = Fake::start(None, "").await;
    api(folder.path(), &format!("127.0.0.1:{}", other.port), &[]).health().await.unwrap();
    assert!(!other.head().contains("authorization"));
}

#[tokio::test]
async fn token_is_not_sent_over_network_unencrypted() {
    let folder = tempfile::tempdir().unwrap();
    let token = ("KOHAKURIVER_TOKEN", "secret");
    let failure = api(folder.path(), "192.0.2.1", &[token]).health().await.unwrap_err();
    assert_eq!(failure.exit_code(), 2);
    assert!(failure.hint.unwrap().contains("--host https://192.0.2.1:8000"));
    for (host, variables) in [
        ("192.0.2.1", vec![token, ("KOHAKURIVER_INSECURE", "1")]),
        ("192.0.2.1", vec![]),
        ("127.0.0.1", vec![token]),
        ("https://192.0.2.1", vec![token]),
    ] {
        assert!(api(folder.path(), host, &variables).find_way().await.is_ok(), "{host}");
    }
    let insecure = [token, ("KOHAKURIVER_INSECURE", "yes")];
    assert!(api(folder.path(), "192.0.2.1", &insecure).find_way().await.is_err());
}
