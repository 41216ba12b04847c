//! Human-readable times.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Formats a past time as `3 minutes ago`; returns text that is no time unchanged.
pub fn ago(text: &str, now: Timestamp) -> String {
    match text.parse::<Timestamp>() {
        Ok(then) => format!("{} ago", words(now.as_second() - then.as_second())),
        Err(_) => text.to_owned(),
    }
}

/// Formats an age as `3 minutes`.
pub fn age(text: &str, now: Timestamp) -> Option<String> {
    let then = text.parse::<Timestamp>().ok()?;
    Some(words(now.as_second() - then.as_second()))
}

/// Formats a time in milliseconds since 1970 like [`ago`].
pub fn ago_ms(then_ms: u64) -> String {
    let then = i64::try_from(then_ms / 1000).unwrap_or(i64::MAX);
    format!("{} ago", words(Timestamp::now().as_second().saturating_sub(then)))
}

/// Formats a time to the second, in the local time zone.
pub fn at(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => {
            time.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
        }
        Err(_) => text.to_owned(),
    }
}

/// Formats a time as `in 3 days` or `2 hours ago`; returns text that is no time unchanged.
pub fn until(text: &str, now: Timestamp) -> String {
    match text.parse::<Timestamp>() {
        Ok(end) if end > now => format!("in {}", words(end.as_second() - now.as_second())),
        Ok(_) | Err(_) => ago(text, now),
    }
}

fn words(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] =
        [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    // The clocks of two computers differ a little: a time in the future counts as now.
    let seconds = seconds.max(0);
    for (size, unit) in UNITS {
        // "90 minutes" is more precise than "1 hour".
        let count = seconds / size;
        if count >= 2 || (size == 1) {
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {unit}{plural}");
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_readable_units() {
        for (seconds, text) in [
            (-5, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7200, "2 hours"),
            (86_400 * 2, "2 days"),
        ] {
            assert_eq!(words(seconds), text);
        }
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        assert_eq!(ago("2026-01-01T00:00:00+00:00", now), "10 minutes ago");
        assert_eq!(ago("yesterday", now), "yesterday");
        assert_eq!(until("2026-01-01T00:00:00+00:00", now), "10 minutes ago");
        assert_eq!(until("2026-01-04T00:10:00+00:00", now), "in 3 days");
    }
}
