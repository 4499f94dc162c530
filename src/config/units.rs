//! Durations and sizes: parsing and printing.
//!
//! Printed values parse back to the same value. Both accept fractions (`1.5s`, `0.5GiB`), and a value that does not fit
//! its type is an error, never wrapped or clamped.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::python;

/// A number of bytes.
///
/// Parsed from `1000`, `1000B`, `64MiB` (powers of 1024) or `64MB` (powers of 1000), in any case. `64M` is rejected,
/// because tools disagree about what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    pub const KIB: ByteSize = ByteSize(1 << 10);
    pub const MIB: ByteSize = ByteSize(1 << 20);
    pub const GIB: ByteSize = ByteSize(1 << 30);

    /// Returns a size of `bytes` bytes.
    pub const fn new(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Prints the largest unit of 1024 that leaves no remainder: `64MiB`, `1000B`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Why a text failed to parse as a duration or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("not a size such as 64MiB, 10GiB or a number of bytes")]
    NotASize,
    #[error("not a duration such as 500ms, 10s, 7d or a number of seconds")]
    NotADuration,
    #[error("negative")]
    Negative,
    #[error("too large")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<ByteSize, UnitError> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(UnitError::Negative);
        }
        let (number, unit) = split_number(text);
        let factor: u128 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(UnitError::NotASize),
        };
        let bytes = scale(number, factor).ok_or(UnitError::NotASize)?.ok_or(UnitError::TooLarge)?;
        u64::try_from(bytes).map(ByteSize).map_err(|_| UnitError::TooLarge)
    }
}

/// Other words for units, which are understood and never printed.
const OTHER_WORDS: [(&str, &[&str]); 6] = [
    ("w", &["week", "weeks"]),
    ("d", &["day", "days"]),
    ("h", &["hr", "hrs", "hour", "hours"]),
    ("m", &["min", "mins", "minute", "minutes"]),
    ("s", &["sec", "secs", "second", "seconds"]),
    ("ms", &["msec", "millisecond", "milliseconds"]),
];

/// Nanoseconds per unit, longest first: the order in which a compound duration is written.
const DURATION_UNITS: [(&str, u128); 8] = [
    ("w", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Parses a duration: `500ms`, `10s`, `7d`, `1h30m`, `5 min`, or a plain number of seconds such as `0.5`.
///
/// A plain number is parsed like a Python float, because the SDK's own settings are such numbers.
///
/// # Errors
///
/// [`UnitError`] without the text itself: the caller knows which setting it came from.
///
/// ```
/// use std::time::Duration;
/// use opik_offline::config::units::parse_duration;
///
/// assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let text = text.trim();
    // Python also parses `inf` and `nan`, which are not usable durations.
    if text.contains(|c: char| c.is_ascii_digit())
        && let Some(seconds) = python::float(text)
    {
        return match seconds < 0.0 {
            true => Err(UnitError::Negative),
            false => Duration::try_from_secs_f64(seconds.abs()).map_err(|_| UnitError::TooLarge),
        };
    }
    if text.starts_with('-') {
        return Err(UnitError::Negative);
    }
    let mut rest = text;
    let mut units = DURATION_UNITS.iter();
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let after = after.trim_start();
        let name_bytes = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (name, next) = after.split_at(name_bytes);
        // Each unit once and in descending order: `30m1h` is more likely a typo than intended.
        let name = unit_of(name);
        let (_, factor) = units.find(|(unit, _)| *unit == name).ok_or(UnitError::NotADuration)?;
        let part = scale(number, *factor).ok_or(UnitError::NotADuration)?.ok_or(UnitError::TooLarge)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or(UnitError::TooLarge)?;
        rest = next.trim_start();
    }
    if text.is_empty() {
        return Err(UnitError::NotADuration);
    }
    duration_of(nanoseconds).ok_or(UnitError::TooLarge)
}

/// Returns the unit of a duration that a word means, which may be the unit itself.
fn unit_of(word: &str) -> &str {
    let other = OTHER_WORDS.iter().find(|(_, words)| words.contains(&word));
    other.map_or(word, |(unit, _)| unit)
}

/// Returns whether a word is a unit of durations.
pub fn is_duration_unit(word: &str) -> bool {
    DURATION_UNITS.iter().any(|(unit, _)| *unit == unit_of(word))
}

/// Prints `duration` in the syntax of [`parse_duration`]: `1h30m`, `500ms`, `0s`.
pub fn print_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    // Weeks are parsed but not printed: people write retention times as 7d.
    for (unit, factor) in &DURATION_UNITS[1..] {
        if rest >= *factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn duration_of(nanoseconds: u128) -> Option<Duration> {
    const PER_SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanoseconds / PER_SECOND).ok()?;
    let rest = u32::try_from(nanoseconds % PER_SECOND).ok()?;
    Some(Duration::new(seconds, rest))
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// Multiplies a decimal number by `factor` without floating-point rounding; a remainder below one is truncated.
///
/// The outer `None` means not a number, the inner one too large.
fn scale(number: &str, factor: u128) -> Option<Option<u128>> {
    /// More fraction digits are below a nanosecond or a byte.
    const FRACTION_DIGITS_MAX: usize = 15;

    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS_MAX)];
    let scaled = || {
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        whole.checked_mul(factor)?.checked_add(part.checked_mul(factor)? / divisor)
    };
    Some(scaled())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_parse_in_binary_and_decimal_units() {
        let cases = [
            ("0", 0),
            ("1000", 1000),
            ("1000B", 1000),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("10GiB", 10 << 30),
            ("1MB", 1_000_000),
            ("1.5KiB", 1536),
            (".5kb", 500),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize::new(bytes)), "{text}");
        }
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        for text in ["", "MiB", "64M", "1..5MiB", "ten", "1 0", "."] {
            assert_eq!(text.parse::<ByteSize>(), Err(UnitError::NotASize), "{text}");
        }
        assert_eq!("-1".parse::<ByteSize>(), Err(UnitError::Negative));
        for text in ["18446744073709551616", "99999999TiB", "9".repeat(60).as_str()] {
            assert_eq!(text.parse::<ByteSize>(), Err(UnitError::TooLarge), "{text}");
        }
    }

    #[test]
    fn durations_parse_with_units_and_as_seconds() {
        let cases = [
            ("0", 0),
            ("0.3", 300),
            ("10", 10_000),
            ("1e1", 10_000),
            ("500ms", 500),
            ("1.5s", 1500),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("5 min", 300_000),
            ("5min", 300_000),
            ("10 s", 10_000),
            ("1 hour 30 minutes", 5_400_000),
            ("2 days", 172_800_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
            (" 2m ", 120_000),
        ];
        for (text, ms) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn invalid_durations_are_rejected() {
        for text in ["", "ten", "10x", "30m1h", "1s1s", "s", "1.2.3s", "inf", "NaN", "1 0", "5 minus", "min"] {
            assert_eq!(parse_duration(text), Err(UnitError::NotADuration), "{text}");
        }
        assert_eq!(parse_duration("-1s"), Err(UnitError::Negative));
        for text in ["1e30", "99999999999999999999d", "20000000000000000000s"] {
            assert_eq!(parse_duration(text), Err(UnitError::TooLarge), "{text}");
        }
    }

    #[test]
    fn printing_uses_the_customary_unit() {
        assert_eq!(print_duration(Duration::ZERO), "0s");
        assert_eq!(print_duration(Duration::from_millis(500)), "500ms");
        assert_eq!(print_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(ByteSize::new(0).to_string(), "0B");
        assert_eq!(ByteSize::new(1000).to_string(), "1000B");
        assert_eq!(ByteSize::new(256 << 20).to_string(), "256MiB");
    }

    proptest! {
        #[test]
        fn printed_durations_round_trip(seconds in any::<u64>(), nanoseconds in 0..1_000_000_000_u32) {
            let duration = Duration::new(seconds, nanoseconds);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn printed_sizes_round_trip(bytes in any::<u64>(), shift in 0..40_u32) {
            let size = ByteSize::new((bytes >> shift) << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,20}") {
            let _ = parse_duration(&text);
            let _ = text.parse::<ByteSize>();
        }
    }
}
