//! Host names to addresses. Addresses and `localhost` never touch a file or a nameserver, so the
//! common case on one machine costs nothing. A name that `/etc/hosts` has is answered by that file
//! alone, whichever family its addresses are of: no nameserver is asked for the other one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use tokio::net::TcpStream;

use crate::files::read_bounded;

const HOSTS: &str = "/etc/hosts";

/// All addresses of `host`, IPv4 loopback first for `localhost`.
///
/// # Errors
/// The name is unknown, or is in no file and no nameserver is configured or answers.
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
    let mut addresses = read_bounded(HOSTS).map_or_else(Vec::new, |text| listed(&text, bare));
    if addresses.is_empty() {
        // Made for each lookup: resolv.conf changes, and nothing idle holds a cache.
        let resolver = TokioResolver::builder_tokio()
            .and_then(|builder| builder.build())
            .map_err(|error| unknown(&error))?;
        let answer = resolver.lookup_ip(bare).await.map_err(|error| unknown(&error))?;
        addresses = answer.iter().collect();
    }
    if addresses.is_empty() {
        return Err(unknown(&"it has no address"));
    }
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// The addresses that the text of `/etc/hosts` has for a name, in its order.
fn listed(hosts: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut found = Vec::new();
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name)) && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Connects to the first address that answers, without Nagle's delay.
///
/// # Errors
/// The name is unknown, or no address of it takes the connection.
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
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn addresses_and_localhost_need_no_resolver() {
        assert_eq!(resolve("127.0.0.1", 7).await.unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        assert_eq!(resolve("[::1]", 7).await.unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(resolve("localhost", 7).await.unwrap()[0], "127.0.0.1:7".parse().unwrap());
    }

    #[test]
    fn hosts_file_lists_addresses_of_either_family() {
        let text = "127.0.0.1 localhost\n# 10.0.0.9 vm\n10.0.0.5\tvm.lab vm # ours\nfd00::5 VM\n\
                    fe80::1%eth0 vm\nbroken vm\n10.0.0.5 vm\n10.0.0.6 other\n";
        let of = |name| listed(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("vm"), ["10.0.0.5", "fd00::5"]);
        assert_eq!(of("Vm.Lab."), ["10.0.0.5"]);
        assert!(of("ours").is_empty() && of("").is_empty() && of("10.0.0.5").is_empty());
    }

    proptest! {
        #[test]
        fn hosts_file_of_any_text_is_read(text in "\\PC{0,200}", name in "[a-z.#]{0,8}") {
            let _ = listed(&text, &name);
        }
    }
}
