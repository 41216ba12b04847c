//! The host's address as users write it.

use std::fmt;
use std::net::Ipv6Addr;

/// A name or an address, without brackets, and whether to use TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    name: String,
    https: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("'{0}' is not a host")]
    Malformed(String),
    #[error("'{0}' has a port that is not a number from 1 to 65535")]
    Port(String),
}

impl Address {
    /// Returns the name without brackets, for connecting.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns the name for URLs and `host:port`: IPv6 in brackets.
    pub fn bracketed(&self) -> String {
        match self.name.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]", self.name),
            Err(_) => self.name.clone(),
        }
    }

    /// Returns text that [`parse`] reads back as the same host and port.
    pub fn url(&self, port: u16) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}:{port}", self.bracketed())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.https {
            return write!(f, "https://{}", self.bracketed());
        }
        f.write_str(&self.name)
    }
}

/// Parses `name`, `1.2.3.4`, `::1`, `[::1]`, each with `:port` and with `http://` or `https://`.
pub fn parse(text: &str) -> Result<(Address, Option<u16>), AddressError> {
    let malformed = || AddressError::Malformed(text.to_owned());
    let rest = text.trim();
    let secure = rest.strip_prefix("https://");
    let https = secure.is_some();
    let address = |name: &str| Address { name: name.to_owned(), https };
    let rest = secure.or_else(|| rest.strip_prefix("http://")).unwrap_or(rest);
    let rest = rest.trim_end_matches('/');
    if rest.parse::<Ipv6Addr>().is_ok() {
        return Ok((address(rest), None));
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or_else(malformed)?;
            host.parse::<Ipv6Addr>().map_err(|_| malformed())?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or_else(malformed)?),
            };
            (host, port)
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || host.starts_with('-') || !host.bytes().all(plain) {
        return Err(malformed());
    }
    let port = match port {
        None => None,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            Ok(_) | Err(_) => return Err(AddressError::Port(text.to_owned())),
        },
    };
    Ok((address(host), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_forms_are_understood() {
        for (text, host, port) in [
            ("gpu1", "gpu1", None),
            ("10.0.0.7:9000", "10.0.0.7", Some(9000)),
            ("::1", "::1", None),
            ("[::1]", "::1", None),
            ("[fe80::2]:81", "fe80::2", Some(81)),
            ("http://gpu1:8000/", "gpu1", Some(8000)),
            ("http://gpu1.lab", "gpu1.lab", None),
            ("https://gpu1.lab:8443/", "gpu1.lab", Some(8443)),
            ("https://[::1]:81", "::1", Some(81)),
        ] {
            let (address, found) = parse(text).unwrap();
            assert_eq!((address.as_str(), found), (host, port), "{text}");
            assert_eq!(address.is_https(), text.starts_with("https"), "{text}");
            assert_eq!(parse(&address.url(7)), Ok((address, Some(7))), "{text}");
        }
        assert_eq!(parse("::1").unwrap().0.bracketed(), "[::1]");
        assert_eq!(parse("https://gpu1").unwrap().0.to_string(), "https://gpu1");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for bad in [
            "",
            "-oProxy",
            "a b",
            "a/b",
            "a:0",
            "a:x",
            "a:99999",
            "[::1",
            "[x]",
            "user@a",
            "https://",
            "https://a/b",
            "ftp://a",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
