use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Where guests live unless the node's owner says otherwise.
pub const DEFAULT_SUBNET: &str = "10.200.0.0/24";

const SHORTEST: u8 = 16;
const LONGEST: u8 = 29;

/// The IPv4 prefix of a node's guests. The first address is the gateway's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseSubnetError {
    #[error("a subnet is an IPv4 prefix, for example {DEFAULT_SUBNET}")]
    Malformed,
    #[error("the prefix of the machines' subnet must be /{SHORTEST} to /{LONGEST}, not /{0}")]
    Size(u8),
    #[error("{0} is not the first address of its prefix; did you mean {1}?")]
    HostBits(String, Subnet),
    #[error(
        "{0} is no place for guests: take a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
    )]
    Special(Subnet),
}

impl Default for Subnet {
    /// [`DEFAULT_SUBNET`].
    fn default() -> Self {
        Self { base: u32::from(Ipv4Addr::new(10, 200, 0, 0)), prefix: 24 }
    }
}

impl Subnet {
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base + 1)
    }

    /// Whether a guest can have it.
    pub fn is_assignable(self, address: Ipv4Addr) -> bool {
        (self.base + 2..self.last()).contains(&address.to_bits())
    }

    /// The lowest address that is not among those taken.
    pub fn allocate(self, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        (self.base + 2..self.last()).map(Ipv4Addr::from_bits).find(|free| !taken.contains(free))
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Ipv4Addr, prefix: u8) -> bool {
        let mask = mask(self.prefix.min(prefix));
        self.base & mask == other.to_bits() & mask
    }

    /// The broadcast address.
    fn last(self) -> u32 {
        self.base | !mask(self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or(ParseSubnetError::Malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| ParseSubnetError::Malformed)?;
        let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| ParseSubnetError::Malformed)?;
        if !digits || prefix > 32 {
            return Err(ParseSubnetError::Malformed);
        }
        if !(SHORTEST..=LONGEST).contains(&prefix) {
            return Err(ParseSubnetError::Size(prefix));
        }
        let subnet = Self { base: address.to_bits() & mask(prefix), prefix };
        if subnet.base != address.to_bits() {
            return Err(ParseSubnetError::HostBits(text.to_owned(), subnet));
        }
        let base = Ipv4Addr::from_bits(subnet.base);
        let first = base.octets()[0];
        if base.is_loopback() || base.is_link_local() || first == 0 || first >= 224 {
            return Err(ParseSubnetError::Special(subnet));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network card's address, made of the guest's IPv4 address: as unique on its bridge and as
/// lasting as that is. A hash of the instance's id into the same 24 bits would collide some day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    pub fn of(address: Ipv4Addr) -> Self {
        let [_, b, c, d] = address.octets();
        Self([0x52, 0x54, 0x00, b, c, d])
    }

    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a network card's address is six pairs of hexadecimal digits with ':' between them")]
pub struct ParseMacError;

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut words = text.split(':');
        for octet in &mut octets {
            let word = words.next().filter(|word| word.len() == 2).ok_or(ParseMacError)?;
            if !word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(word, 16).map_err(|_| ParseMacError)?;
        }
        words.next().is_none().then_some(Self(octets)).ok_or(ParseMacError)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet() -> impl Strategy<Value = Subnet> {
        (any::<u32>(), SHORTEST..=LONGEST).prop_filter_map("not special", |(base, prefix)| {
            format!("{}/{prefix}", Ipv4Addr::from_bits(base & mask(prefix))).parse().ok()
        })
    }

    proptest! {
        #[test]
        fn a_subnet_survives_its_text(subnet in subnet()) {
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
        }

        #[test]
        fn an_address_is_given_to_one_alone_and_the_lowest_free_is_next(
            subnet in subnet(),
            steps in proptest::collection::vec(any::<Option<prop::sample::Index>>(), 1..80),
        ) {
            let mut taken = BTreeSet::new();
            for step in steps {
                match step {
                    Some(gone) if !taken.is_empty() => {
                        let gone = *gone.get(&taken.iter().copied().collect::<Vec<_>>());
                        taken.remove(&gone);
                    }
                    Some(_) | None => match subnet.allocate(&taken) {
                        Some(new) => {
                            prop_assert!(subnet.is_assignable(new) && new != subnet.gateway());
                            prop_assert!(subnet.overlaps(new, 32));
                            let mut lower = (subnet.base + 2..new.to_bits()).map(Ipv4Addr::from_bits);
                            prop_assert!(lower.all(|lower| taken.contains(&lower)));
                            prop_assert!(taken.insert(new));
                        }
                        None => prop_assert_eq!(taken.len() as u32, !mask(subnet.prefix) - 2),
                    },
                }
            }
        }

        #[test]
        fn two_guests_of_a_subnet_and_the_gateway_have_different_macs(
            subnet in subnet(),
            one in any::<u32>(),
            other in any::<u32>(),
        ) {
            let within = |n: u32| Ipv4Addr::from_bits(subnet.base | n & !mask(subnet.prefix));
            let (one, other) = (within(one), within(other));
            prop_assert_eq!(one == other, Mac::of(one) == Mac::of(other));
        }

        #[test]
        fn overlap_means_an_address_in_common(
            subnet in subnet(), other in any::<u32>(), prefix in 0..=32u8,
        ) {
            let (low, high) = (other & mask(prefix), other | !mask(prefix));
            let common = low <= subnet.last() && subnet.base <= high;
            prop_assert_eq!(subnet.overlaps(Ipv4Addr::from_bits(other), prefix), common);
        }
    }

    #[test]
    fn a_mac_survives_its_text_and_nothing_else_is_one() {
        let mac = Mac::of(Ipv4Addr::new(10, 200, 0, 7));
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in
            ["", "52:54:00:c8:00", "52:54:00:c8:00:01:02", "52:54:00:c8:00:+1", "0:0:0:0:0:0"]
        {
            assert_eq!(bad.parse::<Mac>(), Err(ParseMacError), "{bad}");
        }
    }

    #[test]
    fn a_subnet_that_cannot_be_is_refused_with_the_reason() {
        let error = |text: &str| text.parse::<Subnet>().unwrap_err();
        for bad in ["", "10.0.0.0", "10.0.0/24", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/33", "::/64"]
        {
            assert_eq!(error(bad), ParseSubnetError::Malformed, "{bad}");
        }
        assert_eq!(error("10.0.0.0/15"), ParseSubnetError::Size(15));
        assert_eq!(error("10.0.0.0/30"), ParseSubnetError::Size(30));
        assert!(error("10.0.0.7/24").to_string().ends_with("did you mean 10.0.0.0/24?"));
        for special in ["0.0.0.0/16", "127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/24"] {
            assert!(matches!(error(special), ParseSubnetError::Special(_)), "{special}");
        }
        let subnet: Subnet = DEFAULT_SUBNET.parse().unwrap();
        assert_eq!(subnet.gateway().to_string(), "10.200.0.1");
        assert_eq!(Mac::of(subnet.gateway()).to_string(), "52:54:00:c8:00:01");
    }
}
