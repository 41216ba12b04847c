//! `REQUEST_TUNNEL <id>\n`: the protocol of existing clients and of our own ProxyCommand. Where
//! people log in, an API token follows the id.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use kohakuriver_link::protocol::StreamTarget;
use kohakuriver_wire::gateway::{MAX_GREETING, tunnel_request};

use crate::access::{Caller, Who};
use crate::enter::{Entered, enter};
use crate::host::App;
use crate::streams::relay_tcp;

const LINE_LIMIT: Duration = Duration::from_secs(10);

pub async fn serve(app: &App, mut stream: TcpStream, address: IpAddr) {
    let line = match timeout(LINE_LIMIT, read_line(&mut stream)).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return tracing::debug!(%error, "a tunnel request broke off"),
        Err(_) => return tracing::debug!("a tunnel request took too long"),
    };
    let answer = match tunnel_request(&line) {
        None => Err("this is the SSH gateway: use ssh -J, or REQUEST_TUNNEL <id>".to_owned()),
        Some((text, token)) => {
            let caller = caller(app, token, address).await;
            enter(app, &caller, text, StreamTarget::Ssh).await.map_err(|error| match error.hint() {
                Some(hint) => format!("{error}; {hint}"),
                None => error.to_string(),
            })
        }
    };
    let result = match answer {
        Ok(Entered { stream: instance, guard }) => match stream.write_all(b"SUCCESS\n").await {
            Ok(()) => {
                let relayed = guard.during(relay_tcp(instance, stream, &[])).await;
                relayed.map_or(Ok(()), |relayed| relayed.map(drop))
            }
            Err(error) => Err(error),
        },
        Err(text) => match stream.write_all(error_line(&text).as_bytes()).await {
            Ok(()) => stream.shutdown().await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a tunnel ended early");
    }
}

/// Clients print it. What a VPS or its node says in it must not move a terminal's cursor there.
fn error_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    format!("ERROR {}\n", text.chars().map(plain).collect::<String>())
}

/// Whoever the token behind the id is of. Without logging in there is none.
async fn caller(app: &App, token: Option<&str>, address: IpAddr) -> Caller {
    let nobody = Caller::unnamed(app, Some(address));
    let Some(token) = token.filter(|_| nobody.who == Who::Nobody) else { return nobody };
    match app.accounts.of_token(app, token).await {
        Ok(Some(person)) => Caller::new(Who::Somebody(person), Some(address)),
        Ok(None) => nobody,
        Err(error) => {
            tracing::warn!(%error, "a token was not looked up");
            nobody
        }
    }
}

/// One byte at a time, so that nothing behind the line is taken from the client's SSH. Ends at
/// the newline or the bound.
async fn read_line(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_GREETING);
    while line.len() < MAX_GREETING {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_line_has_no_control_characters() {
        assert_eq!(
            error_line("a\u{1b}]0;x\u{7}b\nSUCCESS\r\u{9b}c"),
            "ERROR a ]0;x b SUCCESS  c\n"
        );
    }
}
