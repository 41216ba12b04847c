//! Whether a request is from a web page of somebody else.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

/// Whether the request is from a web page of somebody else: one that names another origin, or,
/// where nobody logs in, one that reaches us under a name that an attacker's DNS points at this
/// machine. `secure`: it came by TLS, to this host or to a trusted proxy. `names` are this
/// machine's own.
///
/// With logging in, such a page has no cookie of ours: a browser keeps it for the name it was set
/// under. So people may reach the host by names that it does not know.
pub fn is_foreign_page(headers: &HeaderMap, secure: bool, names: &[String], log_in: bool) -> bool {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !log_in && !is_ours(host, names) {
        return true;
    }
    match headers.get(ORIGIN).map(|value| value.to_str().unwrap_or("null")) {
        None => false,
        Some(origin) => !is_own_origin(origin, host, secure),
    }
}

/// Whether a page of this origin came from this host: the same name and port, and by https where
/// the request did. A page that came by plain http may have been written by anybody on the way, and
/// some browsers send it the cookies of the https host. The other way round, https before a plain
/// request is a proxy that does TLS and does not say so.
fn is_own_origin(origin: &str, host: &str, secure: bool) -> bool {
    let (port, authority) = match origin.split_once("://") {
        Some(("https", authority)) => ("443", authority),
        Some(("http", authority)) if !secure => ("80", authority),
        _ => return false,
    };
    with_port(authority, port).eq_ignore_ascii_case(&with_port(host, port))
}

/// `river` and `river:443` are one place for a browser that speaks https.
fn with_port(authority: &str, default: &str) -> String {
    let after_address = authority.rsplit(']').next().unwrap_or(authority);
    match after_address.contains(':') {
        true => authority.to_owned(),
        false => format!("{authority}:{default}"),
    }
}

/// A page can only name its own domain in `Host`, so an address, `localhost` and the names that
/// this machine has for itself are safe.
fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        is_foreign_page(&headers, false, &["river".to_owned()], false)
    }

    #[test]
    fn programs_and_our_own_page_pass() {
        assert!(!foreign("127.0.0.1:8000", None));
        assert!(!foreign("localhost:8000", Some("http://localhost:8000")));
        assert!(!foreign("[::1]:8000", None));
        assert!(!foreign("[::1]", Some("http://[::1]")));
        assert!(!foreign("River:8000", Some("http://River:8000")));
    }

    #[test]
    fn other_peoples_pages_do_not_pass() {
        assert!(foreign("127.0.0.1:8000", Some("http://evil.example")));
        assert!(foreign("rebound.evil.example:8000", None));
        assert!(foreign("127.0.0.1:8000", Some("null")));
        assert!(foreign("localhost:8000", Some("http://localhost:3000")));
        assert!(foreign("river.evil.example", None));
        assert!(foreign("river:8000", Some("ftp://river:8000")));
    }

    #[test]
    fn where_people_log_in_any_name_will_do_but_not_another_origin() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "river.lab.example".parse().unwrap());
        assert!(!is_foreign_page(&headers, true, &[], true));
        headers.insert(ORIGIN, "https://evil.example".parse().unwrap());
        assert!(is_foreign_page(&headers, true, &[], true));
    }

    #[test]
    fn an_origin_counts_with_its_scheme_and_port() {
        for (host, origin, secure, own) in [
            ("river.lab", "https://river.lab", true, true),
            ("river.lab:443", "https://river.lab", true, true),
            ("River.lab", "https://river.lab:443", true, true),
            ("river.lab:8000", "https://river.lab:8000", true, true),
            ("river.lab", "http://river.lab", true, false),
            ("river.lab:8000", "http://river.lab:8000", true, false),
            ("river.lab:80", "https://river.lab", true, false),
            ("river.lab", "https://river.lab:8443", true, false),
            ("river.lab:8000", "http://river.lab:8000", false, true),
            ("river.lab", "https://river.lab", false, true),
        ] {
            assert_eq!(is_own_origin(origin, host, secure), own, "{host} {origin} {secure}");
        }
    }
}
