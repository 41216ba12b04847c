//! SSH clients that are not OpenSSH's as it comes.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "support/instance.rs"]
mod instance;
#[path = "support/raw_ssh.rs"]
mod raw_ssh;

use std::borrow::Cow;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use instance::{Instance, text};
use raw_ssh::{
    CIPHERS, DISCONNECT, HOST_KEYS, KEX, NEWKEYS, SERVICE_ACCEPT, SERVICE_REQUEST,
    USERAUTH_FAILURE, USERAUTH_REQUEST, USERAUTH_SUCCESS, kexinit, lists, message, put, receive,
    send,
};
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Auth, Config, Handler};
use russh::{Preferred, cipher, kex, mac};
use tokio::net::TcpListener;

const ATTEMPTS: usize = 5;
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Knows one password, and no keys.
struct OnePassword;

impl Handler for OnePassword {
    type Error = russh::Error;

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(if password == "right" { Auth::Accept } else { Auth::reject() })
    }
}

/// The library's server without encryption, whose messages a test can write by hand.
fn server_in_clear() -> TcpStream {
    let config = Config {
        keys: vec![PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()],
        preferred: Preferred {
            kex: Cow::Borrowed(&[kex::NONE]),
            cipher: Cow::Borrowed(&[cipher::NONE]),
            mac: Cow::Borrowed(&[mac::NONE]),
            ..Preferred::DEFAULT
        },
        auth_rejection_time: Duration::ZERO,
        max_auth_attempts: ATTEMPTS,
        ..Config::default()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (stream, _) = TcpListener::from_std(listener).unwrap().accept().await.unwrap();
            let session = russh::server::run_stream(Arc::new(config), stream, OnePassword).await;
            let _ = session.unwrap().await;
        });
    });
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    client.write_all(b"SSH-2.0-by_hand\r\n").unwrap();
    raw_ssh::read_name(&mut client);
    receive(&mut client).unwrap();
    send(&mut client, &kexinit("none", "ssh-ed25519", "none", "none"));
    send(&mut client, &[NEWKEYS]);
    assert_eq!(receive(&mut client).unwrap()[0], NEWKEYS);
    client
}

fn password(word: &str) -> Vec<u8> {
    let mut request = message(USERAUTH_REQUEST, &["root", "ssh-connection", "password"]);
    request.push(0);
    put(&mut request, word);
    request
}

#[test]
fn service_request_before_each_attempt_is_answered() {
    let mut client = server_in_clear();
    for (word, answer) in [("wrong", USERAUTH_FAILURE), ("right", USERAUTH_SUCCESS)] {
        send(&mut client, &message(SERVICE_REQUEST, &["ssh-userauth"]));
        assert_eq!(receive(&mut client).unwrap()[0], SERVICE_ACCEPT, "before {word}");
        send(&mut client, &password(word));
        assert_eq!(receive(&mut client).unwrap()[0], answer);
    }
}

#[test]
fn service_requests_are_answered_as_often_as_attempts() {
    let mut client = server_in_clear();
    for _ in 0..=ATTEMPTS {
        send(&mut client, &message(SERVICE_REQUEST, &["ssh-userauth"]));
        assert_eq!(receive(&mut client).unwrap()[0], SERVICE_ACCEPT);
    }
    send(&mut client, &message(SERVICE_REQUEST, &["ssh-userauth"]));
    assert_eq!(receive(&mut client).unwrap()[0], DISCONNECT);
}

#[test]
fn service_request_for_an_unknown_service_disconnects() {
    for before in [0, 1] {
        let mut client = server_in_clear();
        for _ in 0..before {
            send(&mut client, &message(SERVICE_REQUEST, &["ssh-userauth"]));
            assert_eq!(receive(&mut client).unwrap()[0], SERVICE_ACCEPT);
        }
        send(&mut client, &message(SERVICE_REQUEST, &["ssh-unknown"]));
        assert_eq!(receive(&mut client).unwrap()[0], DISCONNECT);
    }
}

/// The agent's offer, for a client of this name that offers this, or waits.
fn offer(instance: &Instance, name: &str, offer: Option<&[u8]>) -> Vec<Vec<String>> {
    let (answer, mut stream): (_, UnixStream) = instance.open("{\"target\":\"ssh\"}\n");
    assert_eq!(answer, "{\"ok\":true}");
    write!(stream, "{name}\r\n").unwrap();
    raw_ssh::read_name(&mut stream);
    if let Some(offer) = offer {
        send(&mut stream, offer);
    }
    lists(&receive(&mut stream).unwrap())
}

const OPENSSH: &str = "SSH-2.0-OpenSSH_9.2";
const OTHER: &str = "SSH-2.0-paramiko_4.0.0";

fn offered_to(
    instance: &Instance,
    name: &str,
    keys: &str,
    ciphers: &str,
) -> (Vec<String>, Vec<String>) {
    let own = kexinit("curve25519-sha256", keys, ciphers, "hmac-sha2-256");
    let mut lists = offer(instance, name, Some(&own));
    (lists.swap_remove(HOST_KEYS), lists.swap_remove(CIPHERS))
}

#[test]
fn ciphers_without_gcm_are_offered_where_the_client_has_none() {
    let instance = Instance::start();
    let ciphers = |name, theirs| offered_to(&instance, name, "ssh-ed25519", theirs).1;
    let gcm = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];
    let default = "chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com";
    assert_eq!(ciphers(OPENSSH, default), gcm);
    let all = ciphers(OPENSSH, "chacha20-poly1305@openssh.com,aes256-ctr");
    assert_eq!(all[..2], gcm);
    for name in ["chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"] {
        assert!(all.iter().any(|offered| offered == name), "{name} in {all:?}");
    }
    assert_eq!(ciphers(OTHER, default), all);
}

#[test]
fn ecdsa_host_key_is_offered_to_clients_without_ed25519() {
    let instance = Instance::start();
    let keys = |name, theirs| offered_to(&instance, name, theirs, "aes128-ctr").0;
    for name in [OPENSSH, OTHER] {
        // The order of Go's clients and of OpenSSH before 8.5.
        let both = "ecdsa-sha2-nistp256,rsa-sha2-256,ssh-ed25519";
        assert_eq!(keys(name, both), ["ssh-ed25519"], "{name}");
        let both = ["ssh-ed25519", "ecdsa-sha2-nistp256"];
        assert_eq!(keys(name, "ecdsa-sha2-nistp256,ssh-rsa"), both, "{name}");
    }
}

#[test]
fn client_that_waits_for_the_offer_gets_it_with_strict_kex() {
    let instance = Instance::start();
    for name in [OPENSSH, OTHER] {
        let lists = offer(&instance, name, None);
        assert_eq!(lists[HOST_KEYS], ["ssh-ed25519"]);
        assert!(lists[CIPHERS].iter().any(|cipher| cipher == "aes256-ctr"));
        assert!(lists[KEX].iter().any(|kex| kex == "kex-strict-s-v00@openssh.com"));
    }
}

#[test]
fn openssh_logs_in_with_each_cipher_mac_and_host_key() {
    let instance = Instance::start();
    let log_in = |option: &str| {
        let ssh = instance.ssh(&["-v", "-o", "LogLevel=DEBUG1", "-o", option], "true").output();
        let output = ssh.unwrap();
        let log = text(&output.stderr);
        assert!(output.status.success(), "{option}: {log}");
        log
    };
    for cipher in ["chacha20-poly1305@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr"] {
        let log = log_in(&format!("Ciphers={cipher}"));
        assert!(log.contains(&format!("cipher: {cipher}")), "{log}");
    }
    let log = log_in("MACs=hmac-sha2-256-etm@openssh.com");
    assert!(log.contains("aes128-gcm@openssh.com"), "{log}");
    let log = log_in("HostKeyAlgorithms=ecdsa-sha2-nistp256");
    assert!(log.contains("Server host key: ecdsa-sha2-nistp256"), "{log}");
    let log = log_in("HostKeyAlgorithms=ecdsa-sha2-nistp256,ssh-ed25519");
    assert!(log.contains("Server host key: ssh-ed25519"), "{log}");
    log_in("KexAlgorithms=ecdh-sha2-nistp256");
    log_in("RekeyLimit=1K");
}
