//! `REQUEST_TUNNEL <id>\n`: the protocol of existing clients and of our own ProxyCommand. With
//! authentication on, an API token follows the id, if the client is on this computer: the port has
//! no TLS, so the network in between could read the token.

use std::net::IpAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use kohakuriver_agent_protocol::gateway::{MAX_GREETING, tunnel_request};
use kohakuriver_runner_link::protocol::StreamTarget;

use super::Client;
use crate::access::{Caller, Principal};
use crate::host::App;
use crate::limits::Holder;
use crate::sessions::open::{OpenSession, open_session};
use crate::sessions::streams::relay_tcp;

const TOKEN_IN_THE_CLEAR: &str = "this port has no encryption, so API tokens are taken from the \
     host's own machine only; revoke this one if strangers can read the network, and use \
     `kohakuriver ssh` or `ssh -J`";

pub async fn serve(app: &App, mut stream: TcpStream, client: Client) {
    let line = match read_line(&mut stream).await {
        Ok(line) => line,
        Err(error) => return tracing::debug!(%error, "tunnel request ended early"),
    };
    let result = match answer(app, &line, &client).await {
        Ok(OpenSession { stream: instance, guard }) => match stream.write_all(b"SUCCESS\n").await {
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
        tracing::debug!(%error, "tunnel ended early");
    }
}

/// Removes control characters: clients print the line, and text of a VPS or its node must not
/// control the terminal.
fn error_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    format!("ERROR {}\n", text.chars().map(plain).collect::<String>())
}

/// Opens the stream that the line requests.
async fn answer(app: &App, line: &[u8], client: &Client) -> Result<OpenSession, String> {
    let Some((text, token)) = tunnel_request(line) else {
        return Err("this is the SSH gateway: use ssh -J, or REQUEST_TUNNEL <id>".to_owned());
    };
    let anonymous = Caller::unauthenticated(app, Some(client.address));
    if anonymous.principal == Principal::Anonymous
        && token.is_some()
        && !may_send_token(client.address)
    {
        return Err(TOKEN_IN_THE_CLEAR.to_owned());
    }
    let caller = caller(app, token, anonymous).await;
    let opened = open_session(app, &caller, text, StreamTarget::Ssh).await;
    let opened = opened.map_err(|error| error.line())?;
    client.slot.know(Holder::of(&caller)).map_err(super::too_many)?;
    client.login.done();
    Ok(opened)
}

/// Returns whether nothing between the client and the host can read the token.
fn may_send_token(address: IpAddr) -> bool {
    address.is_loopback()
}

/// Returns the caller that the token identifies. With authentication off there is no token.
async fn caller(app: &App, token: Option<&str>, anonymous: Caller) -> Caller {
    let Some(token) = token.filter(|_| anonymous.principal == Principal::Anonymous) else {
        return anonymous;
    };
    match app.accounts.account_of_token(app, token).await {
        Ok(Some(account)) => Caller::new(Principal::Account(account), anonymous.address),
        Ok(None) => anonymous,
        Err(error) => {
            tracing::warn!(%error, "looking up a token failed");
            anonymous
        }
    }
}

/// Reads one byte at a time, so that the bytes behind the line stay for the relay. Ends at the
/// newline or the bound.
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

    #[test]
    fn tokens_are_taken_from_this_machine_only() {
        for (address, may) in [
            ("127.0.0.1", true),
            ("127.8.9.10", true),
            ("::1", true),
            ("192.0.2.1", false),
            ("10.0.0.1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(may_send_token(address.parse().unwrap()), may, "{address}");
        }
    }
}
