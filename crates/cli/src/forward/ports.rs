use std::str::FromStr;

/// A port inside a VPS, and the local port if given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPair {
    pub remote: u16,
    /// The local port; zero for any free one.
    pub local: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
#[error("write a port from 1 to 65535, or REMOTE:LOCAL, for example 8080 or 5432:15432")]
pub struct NotPorts;

impl FromStr for PortPair {
    type Err = NotPorts;

    fn from_str(text: &str) -> Result<Self, NotPorts> {
        // `parse` would accept a plus sign.
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u16>().map_err(|_| NotPorts),
            false => Err(NotPorts),
        };
        let (remote, local) = match text.split_once(':') {
            Some((remote, local)) => (number(remote)?, Some(number(local)?)),
            None => (number(text)?, None),
        };
        if remote == 0 { Err(NotPorts) } else { Ok(Self { remote, local }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_and_pair_are_parsed() {
        let parse = |text: &str| text.parse::<PortPair>();
        assert_eq!(parse("80").unwrap(), PortPair { remote: 80, local: None });
        assert_eq!(parse("5432:15432").unwrap(), PortPair { remote: 5432, local: Some(15432) });
        assert_eq!(parse("80:0").unwrap().local, Some(0));
        for bad in ["", "0", "0:80", "65536", "80:", ":80", "a", "+80", "80:90:100", "-1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
