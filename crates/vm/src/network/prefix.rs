use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Any range of IPv4 addresses, for a rule of the firewall's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    base: Ipv4Addr,
    length: u8,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a range of addresses is written like 10.1.0.0/16 or 10.1.2.3")]
pub struct ParsePrefixError;

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (base, length) = text.split_once('/').unwrap_or((text, "32"));
        let base: Ipv4Addr = base.parse().map_err(|_| ParsePrefixError)?;
        if !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParsePrefixError);
        }
        let length: u8 = length.parse().map_err(|_| ParsePrefixError)?;
        let mask = match length {
            0 => 0,
            1..=32 => u32::MAX << (32 - u32::from(length)),
            _ => return Err(ParsePrefixError),
        };
        Ok(Self { base: Ipv4Addr::from_bits(base.to_bits() & mask), length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_and_said_as_the_kernel_writes_it() {
        let said = |text: &str| text.parse::<Prefix>().map(|prefix| prefix.to_string());
        for (text, expected) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("1.2.3.4/0", "0.0.0.0/0"),
        ] {
            assert_eq!(said(text).as_deref(), Ok(expected));
        }
        for bad in
            ["", "10.1/16", "10.1.2.3/33", "10.1.2.3/+1", "10.1.2.3/", "::/0", "1.2.3.4; drop"]
        {
            assert_eq!(said(bad), Err(ParsePrefixError), "{bad}");
        }
    }
}
