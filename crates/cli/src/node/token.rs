//! `kohakuriver node token`

use std::net::IpAddr;

use jiff::Timestamp;
use kohakuriver_api::JoinTokenRequest;

use crate::context::Context;
use crate::duration;
use crate::error::CommandError;
use crate::ui::age;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Create a token for one computer to join with.
    Create(CreateArgs),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Only the token goes to standard output; the command for the other computer goes to standard error.

Examples:
  kohakuriver node token create
  kohakuriver node token create --ttl 10m --address host.lab:8001")]
pub struct CreateArgs {
    /// Lifetime of the token, for example 30m, 1h or 2d; at most 7d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    ttl: u64,
    /// Host and port that the computer connects to [default: the host's --advertise address].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

pub async fn run(context: &Context, command: TokenCommand) -> Result<(), CommandError> {
    let TokenCommand::Create(args) = command;
    let body = JoinTokenRequest { ttl_seconds: Some(args.ttl), address: args.address };
    let token = context.api.join_token(&body).await?;
    if context.out.json {
        context.out.json(&token);
        return Ok(());
    }
    context.out.line(&token.token);
    // The lifetime comes from the host's response, not from the request.
    let now = Timestamp::now();
    let lasts = token
        .expires_at
        .parse::<Timestamp>()
        .ok()
        .and_then(|end| age(&now.to_string(), end))
        .map_or_else(String::new, |time| format!(", within {time}"));
    context.out.note(format!(
        "On the computer that joins, once{lasts} (it connects to {}):\n  kohakuriver runner --join {}",
        token.address, token.token
    ));
    if is_loopback(&token.address) {
        context.out.note(format!("note: only this computer can connect to {}", token.address));
        context
            .out
            .hint("for other computers run `kohakuriver host --advertise ADDRESS` instead of `up`");
    }
    Ok(())
}

/// Returns whether `host:port` is a loopback address.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    const LONGEST: u64 = 7 * 86_400;
    match duration::seconds(text)? {
        total if (1..=LONGEST).contains(&total) => Ok(total),
        _ => Err("a token lasts from 1 second to 7 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_is_parsed_and_bounded() {
        assert_eq!(seconds("1h"), Ok(3600));
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("7d"), Ok(604_800));
        for bad in ["", "h", "0", "8d", "2w", "-1h", "99999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn loopback_addresses_are_recognized() {
        for here in ["127.0.0.1:8001", "127.0.1.1:8001", "[::1]:8001", "localhost:8001"] {
            assert!(is_loopback(here), "{here}");
        }
        for reachable in ["10.0.0.5:8001", "host.lab:8001", "[2001:db8::1]:8001"] {
            assert!(!is_loopback(reachable), "{reachable}");
        }
    }
}
