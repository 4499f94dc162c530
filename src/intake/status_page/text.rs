//! Numbers, times and other people's texts, as the status page shows them.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use crate::delivery::eta::in_words;
use crate::printable;

/// Returns a text with every character escaped that HTML gives a meaning, and what would reverse the text around it.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let text = printable::line(text);
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text;
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Returns the beginning and the end of a text that is too long for the page.
pub(super) fn elided(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 120;
    const END_CHARS: usize = 40;
    let count = text.chars().count();
    if count <= CHARS_MAX {
        return Cow::Borrowed(text);
    }
    let (begin, end) = (text.chars().take(CHARS_MAX - END_CHARS), text.chars().skip(count - END_CHARS));
    Cow::Owned(begin.chain(['…']).chain(end).collect())
}

/// Returns a number with separated thousands.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number for the axis of a plot, where there is little room: `50,000`, `1.5M`.
pub(super) fn axis_number(count: u64) -> String {
    let units = [("G", 1_000_000_000_u64), ("M", 1_000_000)];
    match units.into_iter().find(|(_, unit)| count >= *unit) {
        Some((name, unit)) => {
            let text = format!("{:.1}", count as f64 / unit as f64);
            format!("{}{name}", text.trim_end_matches(".0"))
        }
        None => number(count),
    }
}

/// Returns a count with its noun: `1 message`, `1,200 messages`.
pub(super) fn words(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}

/// Returns a size in binary units.
pub(super) fn size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Returns a rate per second.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.1 => "< 0.1".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => number(rate.round() as u64),
    }
}

/// Returns the time from then to now.
pub(super) fn ago(now_ms: i64, then_ms: i64) -> String {
    in_words(now_ms.saturating_sub(then_ms).max(0) as f64 / 1000.0)
}

/// Returns the time of day if it was within the last day, else the date as well.
pub(super) fn since(now_ms: i64, then_ms: i64) -> String {
    if (0..86_400_000).contains(&(now_ms - then_ms)) { clock(then_ms) } else { moment(then_ms) }
}

/// Returns a time in UTC: `2026-11-22 20:07:08`.
pub(super) fn moment(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string();
    text.trim_end_matches('Z').replace('T', " ")
}

/// Returns the time of day in UTC.
pub(super) fn clock(ms: i64) -> String {
    moment(ms).split_once(' ').map_or(String::new(), |(_, clock)| clock.to_owned())
}
