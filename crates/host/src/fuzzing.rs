//! Entry points for fuzz targets: the parsers of bytes from unauthenticated clients.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::access::origin::is_foreign_page;
use crate::accounts;
use crate::client_address::{ClientAddress, Secure, origin};

/// Parses the headers of a request, one per line: its forwarding headers and credentials.
pub fn request_head(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let _ = accounts::cookie(&headers, accounts::COOKIE_NAME);
    let _ = accounts::bearer(&headers);
    let names = ["river".to_owned()];
    for (secure, log_in) in [(false, false), (false, true), (true, false), (true, true)] {
        let _ = is_foreign_page(&headers, secure, &names, log_in);
    }
    let peer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let nobody = origin(peer, false, &headers, &[]);
    assert_eq!(
        nobody,
        (ClientAddress(peer), Secure(false)),
        "a stranger's word counts for nothing"
    );
    let _ = origin(peer, false, &headers, &[IpNet::from(peer)]);
}
