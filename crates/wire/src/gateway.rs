//! The greeting of existing clients on the SSH gateway's port: `REQUEST_TUNNEL <id>\n`.

/// `REQUEST_TUNNEL ` and the longest name, the newline included.
pub const MAX_GREETING: usize = 128;

/// The reference of the instance, if the line is a request.
pub fn tunnel_request(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("REQUEST_TUNNEL ")?.trim_end();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_request_is_one() {
        assert_eq!(tunnel_request(b"REQUEST_TUNNEL 123"), Some("123"));
        assert_eq!(tunnel_request(b"REQUEST_TUNNEL web\r"), Some("web"));
        for bad in [&b"REQUEST_TUNNEL "[..], b"REQUEST_TUNNE", b"GET / HTTP/1.1", b"\xff\xfe"] {
            assert_eq!(tunnel_request(bad), None);
        }
    }
}
