//! Login with a browser, for accounts of an OpenID Connect provider. The browser returns to a port
//! of this machine with a code, which only this process can exchange for a session. Before that, a
//! page of the host displays a short code that this process prints too, and waits for a
//! confirmation, so that an attacker's link cannot hand a session over unnoticed.

use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use kohakuriver_api::{LoggedIn, OidcHandover, Secret};
use rand::Rng;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::api::{Api, Session};
use crate::context::Context;
use crate::error::CommandError;
use crate::wait;

/// The host drops a login that takes longer.
const PATIENCE: Duration = Duration::from_secs(600);
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 16 * 1024;

/// Opens a session with the user's browser.
pub async fn log_in(context: &Context, api: &Api) -> Result<(LoggedIn, Session), CommandError> {
    api.may_be_told_secrets().await?;
    let broken = |error: io::Error| {
        CommandError::request(format!("cannot wait for the browser on this machine: {error}"))
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(broken)?;
    let port = listener.local_addr().map_err(broken)?.port();
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    let verifier = HEXLOWER.encode(&bytes);
    let challenge = BASE64URL_NOPAD.encode(&Sha256::digest(&verifier));
    let url = format!("{}/api/auth/oidc/start?port={port}&challenge={challenge}", api.url());
    context.out.note(format!("log in with a browser of this machine:\n  {url}"));
    let code = kohakuriver_api::handover_code(&challenge);
    context.out.note(format!("press the button there if the page shows this code: {code}"));
    open(&url);
    let waiting = async {
        timeout(PATIENCE, wait_for_code(&listener)).await.map_err(|_| {
            CommandError::request("the browser login was not completed in time")
                .hint("where this machine has none: kohakuriver auth login --token-stdin")
        })
    };
    let code =
        wait::unless_interrupted(waiting, || CommandError::interrupted("not logged in")).await?;
    let handover = OidcHandover { code: Secret(code), verifier: Secret(verifier) };
    api.session_of_browser(&handover).await
}

/// Opens the browser by itself where there is a display.
fn open(url: &str) {
    let has_screen =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if has_screen {
        let quiet = || Stdio::null();
        let mut command = Command::new("xdg-open");
        command.arg(url).stdin(quiet()).stdout(quiet()).stderr(quiet());
        // Nothing depends on it: the address is on the screen.
        let _ = command.spawn();
    }
}

/// Waits for a request with a code. Other requests receive 404.
async fn wait_for_code(listener: &TcpListener) -> String {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(Ok(head)) = timeout(REQUEST_LIMIT, head(&mut stream)).await else { continue };
        let code = code_of(&head).map(str::to_owned);
        let (status, text) = match code {
            Some(_) => ("200 OK", "You are logged in. Go back to the terminal."),
            None => ("404 Not Found", "There is nothing here."),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
        let _ = timeout(REQUEST_LIMIT, stream.write_all(answer.as_bytes())).await;
        let _ = stream.shutdown().await;
        if let Some(code) = code {
            return code;
        }
    }
}

/// Reads a request up to its empty line.
async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || bytes.len() > LONGEST_REQUEST {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the code of `GET /?code=... HTTP/1.1`.
fn code_of(head: &str) -> Option<&str> {
    let target = head.lines().next()?.strip_prefix("GET /?")?.split(' ').next()?;
    let code = target.split('&').find_map(|pair| pair.strip_prefix("code="))?;
    (code.len() == 64 && code.bytes().all(|b| b.is_ascii_hexdigit())).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_with_a_code_brings_one() {
        let code = "a1".repeat(32);
        let of = |text: &str| code_of(&text.replace("CODE", &code)).map(str::to_owned);
        assert_eq!(of("GET /?code=CODE HTTP/1.1\r\nHost: x\r\n\r\n"), Some(code.clone()));
        assert_eq!(of("GET /?x=1&code=CODE HTTP/1.1"), Some(code.clone()));
        for bad in [
            "",
            "GET / HTTP/1.1",
            "POST /?code=CODE HTTP/1.1",
            "GET /?code=CODEff HTTP/1.1",
            "GET /?code= HTTP/1.1",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
