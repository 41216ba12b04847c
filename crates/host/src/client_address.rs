//! The origin of a request: the client's address, and whether its connection is encrypted.
//!
//! A proxy passes both in headers, which any client can forge: they count only on connections from
//! a trusted proxy, and only the parts that trusted proxies wrote. Each proxy appends the address
//! of its peer, so the list is read from its end: the first address that is no trusted proxy is the
//! client.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// Request extension: the client's address, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Request extension: whether the request came by TLS, to this host or to a trusted proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secure(pub bool);

/// Returns whether the peer's forwarding headers count.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// Determines the origin of a request that `peer` sent.
pub fn origin(
    peer: IpAddr,
    over_tls: bool,
    headers: &HeaderMap,
    trusted: &[IpNet],
) -> (ClientAddress, Secure) {
    if !is_trusted(peer, trusted) {
        return (ClientAddress(peer), Secure(over_tls));
    }
    let hops = if headers.contains_key("x-forwarded-for") {
        from_the_end(headers, "x-forwarded-for").map(address).collect::<Vec<_>>()
    } else {
        from_the_end(headers, "forwarded")
            .map(|hop| parameter(hop, "for").and_then(address))
            .collect()
    };
    let mut client = peer;
    for hop in hops {
        // An entry that cannot be parsed proves nothing, and neither do those before it.
        let Some(hop) = hop else { break };
        client = hop;
        if !is_trusted(hop, trusted) {
            break;
        }
    }
    let scheme = from_the_end(headers, "x-forwarded-proto").next().or_else(|| {
        from_the_end(headers, "forwarded").next().and_then(|hop| parameter(hop, "proto"))
    });
    let secure = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    (ClientAddress(client), Secure(over_tls || secure))
}

/// Returns the elements of a list that may be spread over several headers, the last one first.
fn from_the_end<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    values
        .into_iter()
        .rev()
        .flat_map(|value| value.to_str().unwrap_or_default().rsplit(','))
        .map(str::trim)
}

/// Finds a parameter in `for=192.0.2.60;proto=https`; values may be quoted.
fn parameter<'a>(hop: &'a str, name: &str) -> Option<&'a str> {
    hop.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// Parses `10.0.0.1`, `10.0.0.1:80`, `::1`, `[::1]` or `[::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok();
    let parsed = parsed.or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip()));
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_headers_have_an_origin(
            headers in proptest::collection::vec(
                ("x-forwarded-for|forwarded|x-forwarded-proto", "[ -~]{0,40}"),
                0..4,
            )
        ) {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            }
            let peer = "10.0.0.1".parse().unwrap();
            let nobody = origin(peer, false, &map, &[]);
            prop_assert_eq!(nobody, (ClientAddress(peer), Secure(false)));
            let _ = origin(peer, false, &map, &["0.0.0.0/0".parse().unwrap()]);
        }
    }

    fn from(peer: &str, headers: &[(&'static str, &str)]) -> (String, bool) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let (client, secure) = origin(peer.parse().unwrap(), false, &map, &trusted);
        (client.0.to_string(), secure.0)
    }

    #[test]
    fn headers_of_untrusted_peers_are_ignored() {
        let lies = [
            ("x-forwarded-for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1;proto=https"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(from("192.0.2.9", &lies), ("192.0.2.9".to_owned(), false));
    }

    #[test]
    fn client_is_the_last_address_that_is_no_trusted_proxy() {
        for (value, client) in [
            ("203.0.113.7", "203.0.113.7"),
            ("127.0.0.1, 203.0.113.7", "203.0.113.7"),
            ("127.0.0.1, 203.0.113.7:5000,10.1.1.1", "203.0.113.7"),
            ("10.9.9.9", "10.9.9.9"),
            ("[2001:db8::7]:99", "2001:db8::7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("203.0.113.7, rubbish, 10.1.1.1", "10.1.1.1"),
            ("rubbish", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(from("10.0.0.1", &[("x-forwarded-for", value)]).0, client, "{value}");
        }
        let two = [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(from("10.0.0.1", &two).0, "203.0.113.7");
    }

    #[test]
    fn standard_forwarded_header_is_parsed() {
        let header = |value| [("forwarded", value)];
        let value = "for=127.0.0.1, For=\"[2001:db8::7]:4711\";proto=https;by=x";
        assert_eq!(from("::1", &header(value)), ("2001:db8::7".to_owned(), true));
        assert_eq!(from("::1", &header("for=_hidden")), ("::1".to_owned(), false));
        // A proxy that writes the other header passes this one on as the client sent it.
        let both = [("forwarded", "for=127.0.0.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(from("::1", &both).0, "203.0.113.7");
    }

    #[test]
    fn nearest_proxy_decides_whether_tls_was_used() {
        let claimed_name = |value| from("10.0.0.1", &[("x-forwarded-proto", value)]).1;
        assert!(claimed_name("https"));
        assert!(!claimed_name("http"));
        assert!(!claimed_name("https, http"));
        assert!(!from("10.0.0.1", &[]).1);
    }
}
