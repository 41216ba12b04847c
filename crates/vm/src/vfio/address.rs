//! Where a PCI function is plugged in.

use std::fmt;
use std::str::FromStr;

/// `0000:01:00.0`: domain, bus, device (the slot), function. Its order is the order of the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    pub fn function(self) -> u8 {
        self.function
    }

    /// Whether both are functions of one card.
    pub fn is_same_slot(self, other: Self) -> bool {
        (self.domain, self.bus, self.device) == (other.domain, other.bus, other.device)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PCI address: they look like 0000:01:00.0")]
pub struct AddressError(String);

impl FromStr for PciAddress {
    type Err = AddressError;

    /// NVIDIA's tools write the domain with eight digits and in capitals; the kernel does neither.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError(text.chars().take(40).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let digits = |part: &str, least: usize, most: usize| {
        let fits = (least..=most).contains(&part.len());
        let plain = part.bytes().all(|b| b.is_ascii_hexdigit());
        (fits && plain).then(|| u32::from_str_radix(part, 16).ok()).flatten()
    };
    Some(PciAddress {
        domain: digits(domain, 4, 8)?,
        bus: u8::try_from(digits(bus, 2, 2)?).ok()?,
        device: u8::try_from(digits(device, 2, 2)?).ok().filter(|device| *device < 32)?,
        function: u8::try_from(digits(function, 1, 1)?).ok().filter(|function| *function < 8)?,
    })
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for PciAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PciAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ways_of_writing_are_one_address() {
        let kernel: PciAddress = "0000:0f:00.0".parse().unwrap();
        assert_eq!("00000000:0F:00.0".parse(), Ok(kernel));
        assert_eq!(kernel.to_string(), "0000:0f:00.0");
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:e1:00.0");
        assert!(kernel.is_same_slot("0000:0f:00.1".parse().unwrap()));
        assert!(!kernel.is_same_slot("0001:0f:00.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["", "01:00.0", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "0000:1:00.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
        for bad in ["../:01:00.0", "+000:01:00.0", "0000:01:00.0\n", "000000001:01:00.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_keeps_its_order(
            a in (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8),
            b in (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8),
        ) {
            let make = |(domain, bus, device, function)| PciAddress { domain, bus, device, function };
            prop_assert_eq!(make(a).to_string().parse::<PciAddress>(), Ok(make(a)));
            prop_assert_eq!(a.cmp(&b), make(a).cmp(&make(b)));
        }
    }
}
