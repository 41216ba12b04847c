//! Which nameservers guests are told.

use std::net::Ipv4Addr;

/// More than that, no resolver reads.
const MOST: usize = 3;
/// The machine's own, then what its local resolver asks in turn: a guest cannot reach a resolver
/// on the machine's loopback.
const FILES: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];
/// Where the machine's resolver tells nobody whom it asks; two that anybody may use.
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];

/// The nameservers that this machine uses, as far as a guest can reach them.
pub fn nameservers() -> Vec<Ipv4Addr> {
    let texts = FILES.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
    first_usable(texts)
}

fn first_usable(texts: impl Iterator<Item = String>) -> Vec<Ipv4Addr> {
    texts.map(|text| usable(&text)).find(|found| !found.is_empty()).unwrap_or(PUBLIC.to_vec())
}

fn usable(text: &str) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            continue;
        };
        match address.parse::<Ipv4Addr>() {
            Ok(address) if reachable(address) && !found.contains(&address) => found.push(address),
            Ok(_) | Err(_) => {}
        }
    }
    found.truncate(MOST);
    found
}

fn reachable(address: Ipv4Addr) -> bool {
    !(address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(texts: &[&str]) -> Vec<String> {
        let found = first_usable(texts.iter().map(|text| (*text).to_owned()));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_machines_own_are_used_in_their_order() {
        let text = "# by hand\nsearch a.example\nnameserver 10.0.0.53\n nameserver\t192.0.2.1 \n\
                    nameserver 10.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\nnameservers 9.9.9.9\n";
        assert_eq!(from(&[text]), ["10.0.0.53", "192.0.2.1"]);
        let many =
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4";
        assert_eq!(from(&[many]).len(), 3);
    }

    #[test]
    fn a_local_resolver_gives_way_to_those_it_asks() {
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(from(&[stub, "nameserver 172.16.0.2\n"]), ["172.16.0.2"]);
        assert_eq!(from(&[stub, "", "nameserver 0.0.0.0\n"]), ["1.1.1.1", "8.8.8.8"]);
        assert_eq!(from(&[]), ["1.1.1.1", "8.8.8.8"]);
    }
}
