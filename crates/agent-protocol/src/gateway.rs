//! The greeting of existing clients on the SSH gateway's port: `REQUEST_TUNNEL <id>\n`, and
//! `REQUEST_TUNNEL <id> <token>\n` where people log in.

/// `REQUEST_TUNNEL `, the longest name and a token of 64 digits, the newline included.
pub const MAX_GREETING: usize = 160;

/// Returns the reference of the instance and the token, if the line is a request.
pub fn tunnel_request(line: &[u8]) -> Option<(&str, Option<&str>)> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("REQUEST_TUNNEL ")?;
    let mut words = text.split_ascii_whitespace();
    let id = words.next()?;
    let token = words.next();
    words.next().is_none().then_some((id, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_request_is_one() {
        assert_eq!(tunnel_request(b"REQUEST_TUNNEL 123"), Some(("123", None)));
        assert_eq!(tunnel_request(b"REQUEST_TUNNEL web\r"), Some(("web", None)));
        assert_eq!(tunnel_request(b"REQUEST_TUNNEL web feed"), Some(("web", Some("feed"))));
        for bad in [
            &b"REQUEST_TUNNEL "[..],
            b"REQUEST_TUNNE",
            b"REQUEST_TUNNEL a b c",
            b"GET / HTTP/1.1",
            b"\xff\xfe",
        ] {
            assert_eq!(tunnel_request(bad), None);
        }
    }
}
