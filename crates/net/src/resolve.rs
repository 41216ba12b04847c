//! Host names to addresses. Addresses and `localhost` never touch the resolver, so the common
//! case on one machine costs nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use tokio::net::TcpStream;

/// All addresses of `host`, IPv4 loopback first for `localhost`.
///
/// # Errors
/// The name is unknown, or the machine's resolver configuration cannot be used.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if bare.eq_ignore_ascii_case("localhost") {
        let four = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        return Ok(vec![four, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)]);
    }
    let unknown = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::NotFound, format!("the name '{bare}' was not found: {error}"))
    };
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| unknown(&error))?;
    let answer = resolver.lookup_ip(bare).await.map_err(|error| unknown(&error))?;
    let addresses: Vec<_> = answer.iter().map(|address| SocketAddr::new(address, port)).collect();
    if addresses.is_empty() {
        return Err(unknown(&"it has no address"));
    }
    Ok(addresses)
}

/// Connects to the first address that answers, without Nagle's delay.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = None;
    for address in resolve(host, port).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("no address to connect to")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_and_localhost_need_no_resolver() {
        assert_eq!(resolve("127.0.0.1", 7).await.unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        assert_eq!(resolve("[::1]", 7).await.unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(resolve("localhost", 7).await.unwrap()[0], "127.0.0.1:7".parse().unwrap());
    }
}
