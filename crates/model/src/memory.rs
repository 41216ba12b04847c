//! Amounts of memory as text.

use std::fmt;
use std::str::FromStr;

/// An amount in bytes. `8G` is 8 x 1024^3, as Docker and systemd read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

/// Docker refuses a container with less.
pub const SMALLEST_LIMIT: Memory = Memory(6 * 1024 * 1024);

impl Memory {
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Parses a text in which a plain number counts in `unit`, such as `G` for a disk.
    ///
    /// # Errors
    /// As of `parse`.
    pub fn parse_in(unit: char, text: &str) -> Result<Self, ParseMemoryError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return format!("{text}{unit}").parse();
        }
        text.parse()
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseMemoryError {
    #[error("'{0}' is not a size: write a number and K, M, G or T, for example 8G or 512M")]
    Malformed(String),
    #[error("'{0}' is too large a size")]
    TooLarge(String),
}

impl FromStr for Memory {
    type Err = ParseMemoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseMemoryError::Malformed(text.to_owned());
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        if digits.is_empty() {
            return Err(malformed());
        }
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KI" | "KIB" => 10,
            "M" | "MB" | "MI" | "MIB" => 20,
            "G" | "GB" | "GI" | "GIB" => 30,
            "T" | "TB" | "TI" | "TIB" => 40,
            _ => return Err(malformed()),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .map(Self)
            .ok_or_else(|| ParseMemoryError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
        for (unit, size) in UNITS {
            if self.0 >= size {
                let tenths = (u128::from(self.0) * 10 + u128::from(size) / 2) / u128::from(size);
                return match tenths % 10 {
                    0 => write!(f, "{}{unit}", tenths / 10),
                    tenth => write!(f, "{}.{tenth}{unit}", tenths / 10),
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_binary_and_case_does_not_matter() {
        for (text, bytes) in
            [("8G", 8 << 30), ("512m", 512 << 20), ("64MiB", 64 << 20), ("7", 7), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
    }

    #[test]
    fn plain_number_counts_in_the_given_unit() {
        for (unit, text, bytes) in
            [('G', "20", 20 << 30), ('M', "16384", 16 << 30), ('G', "9M", 9 << 20)]
        {
            assert_eq!(Memory::parse_in(unit, text), Ok(Memory(bytes)), "{text}");
        }
        assert!(Memory::parse_in('G', "").is_err());
    }

    #[test]
    fn invalid_amount_is_refused_with_an_example() {
        for bad in ["", "8X", "G", "-1G", "1.5G", "8 G", "８G"] {
            let error = bad.parse::<Memory>().unwrap_err();
            assert!(error.to_string().contains("for example 8G"), "{bad:?}: {error}");
        }
        assert!("99999999999T".parse::<Memory>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_without_panic(text in "\\PC{0,24}") {
            let _ = text.parse::<Memory>();
        }

        #[test]
        fn whole_units_round_trip(count in 1u64..1000, unit in "[KMG]") {
            let text = format!("{count}{unit}");
            prop_assert_eq!(text.parse::<Memory>().unwrap().to_string(), text);
        }
    }
}
