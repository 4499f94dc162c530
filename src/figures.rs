//! Figures as people read them: counts with their noun, sizes, times and durations.
//!
//! Pure and imported by many, so that a room can put a figure into a message, and the command line and the page
//! write the same figure alike.

use std::time::{Duration, UNIX_EPOCH};

/// Returns a count with its noun in the right number.
pub(crate) fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}s", separated(number)),
    }
}

/// Returns the pronoun for this many things.
pub(crate) fn them(number: u64) -> &'static str {
    if number == 1 { "it" } else { "them" }
}

/// Returns why this many messages have expired.
pub(crate) fn too_old(number: u64) -> &'static str {
    match number {
        1 => "because it was older than max_age",
        _ => "because they were older than max_age",
    }
}

/// Returns a number with separated thousands: `24,000`.
pub(crate) fn separated(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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

/// Returns a time to come in UTC, to the minute: `14:02 UTC`, with the date if that is another day; to the second within
/// a minute.
pub(crate) fn until(now_ms: i64, ms: i64) -> String {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let text = time(ms);
    let (date, clock) = text.split_once('T').unwrap_or(("", text.as_str()));
    let clock = clock.get(..if ms.saturating_sub(now_ms) < 60_000 { 8 } else { 5 }).unwrap_or(clock);
    match now_ms.div_euclid(DAY_MS) == ms.div_euclid(DAY_MS) {
        true => format!("{clock} UTC"),
        false => format!("{date} {clock} UTC"),
    }
}

/// Returns a time relative to now: `1h5m ago`, `in 1m30s`; `now` within a second.
pub(crate) fn relative(now_ms: i64, ms: i64) -> String {
    let apart = Duration::from_millis(now_ms.abs_diff(ms));
    match (apart.as_secs(), now_ms > ms) {
        (0, _) => "now".to_owned(),
        (_, true) => format!("{} ago", short_duration(apart)),
        (_, false) => format!("in {}", short_duration(apart)),
    }
}

/// How people see times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// In milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Whether times are shown in UTC instead of relative to now.
    pub is_utc: bool,
}

impl Clock {
    /// Returns a time: `1h5m ago`, or in UTC.
    pub(crate) fn at(self, ms: i64) -> String {
        if self.is_utc { time(ms) } else { relative(self.now_ms, ms) }
    }

    /// Returns the begin of what still lasts: `for 1h5m`, or `since` a time in UTC.
    pub(crate) fn since(self, ms: i64) -> String {
        let lasts = Duration::from_millis(u64::try_from(self.now_ms.saturating_sub(ms)).unwrap_or(0));
        if self.is_utc { format!("since {}", time(ms)) } else { format!("for {}", short_duration(lasts)) }
    }
}

/// Returns an estimated time in seconds as a range, rounded outwards to steps that people think in: `3m to 5m`, or
/// `about 4m` if both ends round to the same; `at least 3m` without a maximum.
pub(crate) fn time_range(seconds_min: f64, seconds_max: Option<f64>) -> String {
    let whole = |seconds: f64| if seconds.is_finite() { seconds.clamp(0.0, 1e12) } else { 1e12 };
    let min = whole(seconds_min);
    let Some(max) = seconds_max.map(whole) else {
        return format!("at least {}", rounded(min, f64::floor));
    };
    if max < 1.0 {
        return "about a second".to_owned();
    }
    let (low, high) = (rounded(min, f64::floor), rounded(max, f64::ceil));
    match () {
        () if low == high || max - min < min * NARROW => {
            format!("about {}", rounded(f64::midpoint(min, max), f64::round))
        }
        () if min < 1.0 => format!("at most {high}"),
        () => format!("{low} to {high}"),
    }
}

/// A range that is narrower than this share of its minimum is written as one time.
const NARROW: f64 = 0.1;

/// Rounds seconds to a step of about a tenth of their size.
fn rounded(seconds: f64, round: fn(f64) -> f64) -> String {
    const STEPS: [(f64, f64); 8] = [
        (10.0, 1.0),
        (60.0, 5.0),
        (180.0, 10.0),
        (600.0, 30.0),
        (3600.0, 60.0),
        (6.0 * 3600.0, 600.0),
        (86_400.0, 3600.0),
        (f64::INFINITY, 86_400.0 / 4.0),
    ];
    let step = STEPS.iter().find(|(below, _)| seconds < *below).map_or(1.0, |(_, step)| *step);
    short_duration(Duration::from_secs((round(seconds / step) * step) as u64))
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
        assert_eq!(
            [0, 999, 1000, 20_015, 1_234_567].map(separated),
            ["0", "999", "1,000", "20,015", "1,234,567"].map(str::to_owned)
        );
        assert_eq!(count(24_000, "message"), "24,000 messages");
        assert_eq!(
            [relative(5000, 5400), relative(95_000, 5000), relative(5000, 95_000)],
            ["now", "1m30s ago", "in 1m30s"]
        );
        let short = |seconds| short_duration(Duration::from_secs(seconds));
        assert_eq!([short(0), short(59), short(61), short(3600), short(90_061)], ["0s", "59s", "1m1s", "1h", "1d1h"]);
    }

    #[test]
    fn an_estimate_is_a_range_in_steps_that_people_think_in() {
        for (min, max, expected) in [
            (0.2, Some(0.4), "about a second"),
            (0.2, Some(4.2), "at most 5s"),
            (10.0, Some(10.0), "about 10s"),
            (8.2, Some(13.1), "8s to 15s"),
            (190.0, Some(290.0), "3m to 5m"),
            (200.0, Some(205.0), "about 3m30s"),
            (3700.0, Some(9000.0), "1h to 2h30m"),
            (200.0, None, "at least 3m"),
            (1e300, Some(f64::INFINITY), "about 11574074d"),
        ] {
            assert_eq!(time_range(min, max), expected, "{min} {max:?}");
        }
    }
}
