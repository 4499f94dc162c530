//! Figures as people read them: counts with their noun, sizes, times and durations.
//!
//! Pure and imported by many, so that a room can put a figure into a message, and the command line and the page
//! write the same figure alike.

use std::time::{Duration, UNIX_EPOCH};

/// Returns a count with its noun in the right number.
pub(crate) fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// Returns a size in the largest unit of 1024 that it fills, to a tenth.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Returns a time in UTC, RFC 3339, to the second.
pub(crate) fn time(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// Returns a duration in its two largest units, rounded down to seconds: `1d1h`, `1m30s`.
pub(crate) fn short_duration(duration: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut seconds = duration.as_secs();
    let Some(first) = UNITS.iter().position(|(_, size)| seconds >= *size) else { return "0s".to_owned() };
    let mut text = String::new();
    for (unit, size) in UNITS.iter().skip(first).take(2) {
        if seconds >= *size {
            text.push_str(&format!("{}{unit}", seconds / size));
        }
        seconds %= size;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        assert_eq!(time(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!([size(0), size(1023), size(1536), size(10 << 30)], ["0 B", "1023 B", "1.5 KiB", "10.0 GiB"]);
        assert_eq!(
            [count(0, "message"), count(1, "message"), count(2, "message")],
            ["0 messages", "1 message", "2 messages"]
        );
        let short = |seconds| short_duration(Duration::from_secs(seconds));
        assert_eq!([short(0), short(59), short(61), short(3600), short(90_061)], ["0s", "59s", "1m1s", "1h", "1d1h"]);
    }
}
