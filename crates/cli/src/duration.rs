//! Durations as users write them.

/// Parses `90`, `90s`, `30m`, `1h`, `2d`, `1w` into seconds.
pub fn seconds(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let size = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err("write a number and s, m, h, d or w, for example 1h".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number first, for example 1h")?;
    number.checked_mul(size).ok_or_else(|| "nothing lasts that long".to_owned())
}

/// Parses a duration in whole hours: `72h`, `90d`.
pub fn hours(text: &str) -> Result<u32, String> {
    let seconds = seconds(text)?;
    if seconds == 0 || !seconds.is_multiple_of(3600) {
        return Err("write whole hours or days, for example 72h or 90d".to_owned());
    }
    u32::try_from(seconds / 3600).map_err(|_| "nothing lasts that long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_understood() {
        assert_eq!(seconds("1h"), Ok(3600));
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(hours("72h"), Ok(72));
        assert_eq!(hours("90d"), Ok(2160));
        assert_eq!(hours("2w"), Ok(336));
        for bad in ["", "h", "1y", "-1h", "99999999999999999999d", "999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
        for bad in ["0", "30m", "90", "99999999999h"] {
            assert!(hours(bad).is_err(), "{bad:?}");
        }
    }
}
