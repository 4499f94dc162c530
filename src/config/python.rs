//! Parses numbers as the SDK does: pydantic, from text, for fields of the types `int` and `float`.
//!
//! `float` is Rust's own syntax with underscores in it, because pydantic is written in Rust; `int` is Python's, plus a
//! fraction of zeros. Both allow surrounding white space. The table in the test holds pydantic's own results.

/// Parses a `float`, which may be infinite or NaN.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    match text.contains('_') {
        true if is_misplaced => None,
        true => text.replace('_', "").parse().ok(),
        false => text.parse().ok(),
    }
}

/// Parses an `int` into its sign and digits.
pub(super) fn int(text: &str) -> Option<(bool, String)> {
    let text = text.trim();
    let (is_negative, number) = match text.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let whole = match number.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0') => whole,
        Some(_) => return None,
        None => number,
    };
    let is_digits = |group: &str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit());
    whole.split('_').all(is_digits).then(|| (is_negative, whole.replace('_', "")))
}

#[cfg(test)]
mod tests {
    use super::super::units::{UnitError, parse_duration};
    use super::super::value::Value;
    use super::*;

    /// The result of parsing each text with `opik.config.OpikConfig` of opik 2.2.122, pydantic 2.14.4 (pydantic-core
    /// 2.50.5) and Python 3.11: as `OPIK_REPLAY_BATCH_SIZE` (an `int`) and as `OPIK_CONNECTION_MONITOR_PING_INTERVAL`
    /// (a `float`); the same from `~/.opik.config`. `None`: a validation error.
    const PYDANTIC: &[(&str, Option<&str>, Option<&str>)] = &[
        ("5", Some("5"), Some("5.0")),
        ("50", Some("50"), Some("50.0")),
        ("50.0", Some("50"), Some("50.0")),
        ("50.", None, Some("50.0")),
        ("50.00", Some("50"), Some("50.0")),
        ("+50.0", Some("50"), Some("50.0")),
        ("-50.0", Some("-50"), Some("-50.0")),
        ("50.5", None, Some("50.5")),
        ("50.000000000001", None, Some("50.000000000001")),
        ("+3", Some("3"), Some("3.0")),
        ("-3", Some("-3"), Some("-3.0")),
        ("++3", None, None),
        ("+-3", None, None),
        ("+ 3", None, None),
        ("- 3", None, None),
        ("3+", None, None),
        (" 5", Some("5"), Some("5.0")),
        ("5 ", Some("5"), Some("5.0")),
        (" 5 ", Some("5"), Some("5.0")),
        ("\t5\n", Some("5"), Some("5.0")),
        ("\u{a0}5", Some("5"), Some("5.0")),
        ("5\u{a0}", Some("5"), Some("5.0")),
        ("\u{2003}5\u{2003}", Some("5"), Some("5.0")),
        ("\u{200b}5", None, None),
        ("\u{feff}5", None, None),
        ("1_000", Some("1000"), Some("1000.0")),
        ("1__000", None, None),
        ("_1", None, None),
        ("1_", None, None),
        ("+_1", None, Some("1.0")),
        ("1_000.0", Some("1000"), Some("1000.0")),
        ("1_0.0_0", None, Some("10.0")),
        ("1.0_0", None, Some("1.0")),
        ("1_.0", None, Some("1.0")),
        ("1._0", None, Some("1.0")),
        ("0_5", Some("5"), Some("5.0")),
        ("1e3", None, Some("1000.0")),
        ("1E3", None, Some("1000.0")),
        ("1e+3", None, Some("1000.0")),
        ("1e-3", None, Some("0.001")),
        ("1e0", None, Some("1.0")),
        ("5e1", None, Some("50.0")),
        ("1_0e1", None, Some("100.0")),
        ("1e1_0", None, Some("10000000000.0")),
        ("0.5", None, Some("0.5")),
        (".5", None, Some("0.5")),
        ("5.", None, Some("5.0")),
        ("0.5_0", None, Some("0.5")),
        ("+.5", None, Some("0.5")),
        ("-.5", None, Some("-0.5")),
        (".", None, None),
        ("+", None, None),
        ("-", None, None),
        ("e5", None, None),
        ("1e", None, None),
        ("1e400", None, Some("inf")),
        ("-1e400", None, Some("-inf")),
        ("inf", None, Some("inf")),
        ("Inf", None, Some("inf")),
        ("INF", None, Some("inf")),
        ("+inf", None, Some("inf")),
        ("-inf", None, Some("-inf")),
        ("infinity", None, Some("inf")),
        ("Infinity", None, Some("inf")),
        ("infinit", None, None),
        ("nan", None, Some("nan")),
        ("NaN", None, Some("nan")),
        ("-nan", None, Some("nan")),
        ("+nan", None, Some("nan")),
        ("007", Some("7"), Some("7.0")),
        ("00", Some("0"), Some("0.0")),
        ("0", Some("0"), Some("0.0")),
        ("-0", Some("0"), Some("-0.0")),
        ("+0", Some("0"), Some("0.0")),
        ("0.0", Some("0"), Some("0.0")),
        ("-0.0", Some("0"), Some("-0.0")),
        ("0x10", None, None),
        ("0X10", None, None),
        ("0b1", None, None),
        ("0o7", None, None),
        ("1f", None, None),
        ("1j", None, None),
        ("1L", None, None),
        ("5s", None, None),
        ("5 s", None, None),
        ("1,000", None, None),
        ("1.000,0", None, None),
        ("1 000", None, None),
        ("\u{ff15}", None, None),
        ("\u{ff15}\u{ff10}", None, None),
        ("\u{663}", None, None),
        ("\u{967}", None, None),
        ("\u{b2}", None, None),
        ("\u{2164}", None, None),
        ("\u{bd}", None, None),
        ("five", None, None),
        ("true", None, None),
        ("True", None, None),
        ("", None, None),
        ("   ", None, None),
        ("None", None, None),
        ("none", None, None),
        ("null", None, None),
        ("3.0e0", None, Some("3.0")),
        ("1e5", None, Some("100000.0")),
        ("9223372036854775807", Some("9223372036854775807"), Some("9.223372036854776e+18")),
        ("9223372036854775808", Some("9223372036854775808"), Some("9.223372036854776e+18")),
        ("18446744073709551615", Some("18446744073709551615"), Some("1.8446744073709552e+19")),
        ("4294967296", Some("4294967296"), Some("4294967296.0")),
        ("99999999999999999999999", Some("99999999999999999999999"), Some("1e+23")),
        ("1.7976931348623157e308", None, Some("1.7976931348623157e+308")),
        ("2e308", None, Some("inf")),
        ("\"5\"", None, None),
        ("'5'", None, None),
        ("5;", None, None),
        ("5#", None, None),
        ("5/1", None, None),
        ("1.5", None, Some("1.5")),
        ("1.", None, Some("1.0")),
        ("01.50", None, Some("1.5")),
        ("+01.5", None, Some("1.5")),
        ("1_1_1", Some("111"), Some("111.0")),
        ("0_0", Some("0"), Some("0.0")),
        ("-1_0", Some("-10"), Some("-10.0")),
        ("1_e3", None, Some("1000.0")),
        ("0.1e1", None, Some("1.0")),
        ("123456789.123456789", None, Some("123456789.12345679")),
        ("2147483648", Some("2147483648"), Some("2147483648.0")),
        ("1d", None, None),
        ("1h30m", None, None),
        ("500ms", None, None),
        (".e1", None, None),
        ("0.", None, Some("0.0")),
        ("-0_1", Some("-1"), Some("-1.0")),
    ];

    /// The same for `OPIK_CHECK_TLS_CERTIFICATE`, a `bool`.
    const PYDANTIC_BOOL: &[(&str, Option<bool>)] = &[
        ("true", Some(true)),
        ("True", Some(true)),
        ("TRUE", Some(true)),
        ("tRuE", Some(true)),
        ("1", Some(true)),
        ("yes", Some(true)),
        ("Yes", Some(true)),
        ("YES", Some(true)),
        ("on", Some(true)),
        ("On", Some(true)),
        ("ON", Some(true)),
        ("t", Some(true)),
        ("T", Some(true)),
        ("y", Some(true)),
        ("Y", Some(true)),
        ("false", Some(false)),
        ("False", Some(false)),
        ("FALSE", Some(false)),
        ("0", Some(false)),
        ("no", Some(false)),
        ("No", Some(false)),
        ("NO", Some(false)),
        ("off", Some(false)),
        ("Off", Some(false)),
        ("OFF", Some(false)),
        ("f", Some(false)),
        ("F", Some(false)),
        ("n", Some(false)),
        ("N", Some(false)),
        (" true", None),
        ("true ", None),
        (" 1 ", None),
        ("\ttrue\n", None),
        ("1.0", None),
        ("0.0", None),
        ("+1", None),
        ("01", None),
        ("00", None),
        ("2", None),
        ("-1", None),
        ("ja", None),
        ("enabled", None),
        ("disabled", None),
        ("enable", None),
        ("none", None),
        ("None", None),
        ("null", None),
        ("", None),
        ("  ", None),
        ("tru", None),
        ("yess", None),
        ("\u{ff54}\u{ff52}\u{ff55}\u{ff45}", None),
        ("oN", Some(true)),
        ("\u{ff11}", None),
        ("true\u{a0}", None),
    ];

    #[test]
    fn number_parsing_matches_pydantic() {
        for (text, as_int, as_float) in PYDANTIC {
            let read = int(text).map(|(is_negative, digits)| {
                let digits = digits.trim_start_matches('0');
                let sign = if is_negative && !digits.is_empty() { "-" } else { "" };
                format!("{sign}{}", if digits.is_empty() { "0" } else { digits })
            });
            assert_eq!(read.as_deref(), *as_int, "{text:?} as an int");
            let expected = as_float.map(|expected| expected.parse::<f64>().expect("Python writes a float"));
            match (float(text), expected) {
                (Some(read), Some(expected)) if read.is_nan() && expected.is_nan() => {}
                (read, expected) => assert_eq!(read, expected, "{text:?} as a float"),
            }
        }
    }

    #[test]
    fn sdk_settings_accept_and_reject_the_numbers_that_the_sdk_does() {
        for (text, as_int, as_float) in PYDANTIC {
            let expected = as_int.and_then(|value| value.parse::<u32>().ok());
            assert_eq!(u32::parse(text).ok(), expected, "{text:?}");
            let read = parse_duration(text);
            match as_float.and_then(|value| value.parse::<f64>().ok()) {
                Some(seconds) if seconds.is_nan() || text.to_ascii_lowercase().contains("inf") => {
                    assert!(read.is_err(), "{text:?}: {read:?}");
                }
                Some(seconds) if seconds < 0.0 => assert_eq!(read, Err(UnitError::Negative), "{text:?}"),
                Some(seconds) => match read {
                    Ok(duration) => assert!((duration.as_secs_f64() - seconds).abs() < 1e-8, "{text:?}: {duration:?}"),
                    Err(error) => assert!(error == UnitError::TooLarge && seconds > 1e18, "{text:?}: {error}"),
                },
                // Numbers with a unit are an extension of ours.
                None if text.ends_with(['s', 'd', 'm']) => assert!(read.is_ok(), "{text:?}"),
                None => assert!(read.is_err(), "{text:?}: {read:?}"),
            }
        }
        assert_eq!(u32::parse("-3"), Err("negative".into()));
        assert_eq!(u32::parse("99999999999999999999999"), Err("too large".into()));
    }

    #[test]
    fn booleans_are_the_words_that_pydantic_knows() {
        for (text, expected) in PYDANTIC_BOOL {
            assert_eq!(bool::parse(text).ok(), *expected, "{text:?}");
        }
    }
}
