//! Detects requests that come from a foreign web page.

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

/// Returns whether the request comes from a foreign web page: one that names another origin, or,
/// with authentication off, one that reaches this host under a name that an attacker's DNS points
/// at it. `secure`: the request came by TLS, to this host or to a trusted proxy. `names` are this
/// host's own.
///
/// With authentication on, such a page has no cookie of this host, because a browser keeps a cookie for
/// the name it was set under. So clients may use names that the host does not know.
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

/// Returns whether a page of this origin came from this host: the same name and port, and by https
/// where the request did. A page that came by plain http may have been altered on the way, and some
/// browsers send it the cookies of the https host. The other way round, an https origin with a
/// plain request, is a proxy that ends TLS without saying so.
fn is_own_origin(origin: &str, host: &str, secure: bool) -> bool {
    let (port, authority) = match origin.split_once("://") {
        Some(("https", authority)) => ("443", authority),
        Some(("http", authority)) if !secure => ("80", authority),
        _ => return false,
    };
    with_port(authority, port).eq_ignore_ascii_case(&with_port(host, port))
}

/// Adds the scheme's port: `river` and `river:443` are the same authority for https.
fn with_port(authority: &str, default: &str) -> String {
    let after_address = authority.rsplit(']').next().unwrap_or(authority);
    match after_address.contains(':') {
        true => authority.to_owned(),
        false => format!("{authority}:{default}"),
    }
}

/// Returns whether the name is this host's. A page can only put its own domain in `Host`, so an
/// address, `localhost` and the host's own names are safe.
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
    fn with_authentication_any_host_name_passes_no_other_origin() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "river.lab.example".parse().unwrap());
        assert!(!is_foreign_page(&headers, true, &[], true));
        headers.insert(ORIGIN, "https://evil.example".parse().unwrap());
        assert!(is_foreign_page(&headers, true, &[], true));
    }

    #[test]
    fn origin_includes_its_scheme_and_port() {
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
