//! How each type of setting is read, shown and limited.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::python;
use super::secret::{KeyText, Secret};
use super::server_url::{ServerUrl, hide_user_info};
use super::sources::expand_home;
use super::units::{self, ByteSize};

/// A type that a setting can have.
///
/// The reason of a failure is text because it has one reader, the person who mistyped; it never repeats the value.
pub(super) trait Value: Sized {
    fn parse(text: &str) -> Result<Self, String>;

    /// Returns what `healthcheck` prints.
    fn show(&self) -> String;

    /// Returns a text that failed to parse, fit to be printed.
    fn mask(text: &str) -> String {
        text.to_owned()
    }

    /// Reads what a layer holds. Only a path is more than text to the system.
    fn read(raw: &OsStr, _home: Option<&Path>) -> Result<Self, String> {
        let text = raw.to_str().ok_or("not valid UTF-8")?;
        Self::parse(text.trim())
    }
}

/// An optional setting: `none` unsets what a lower layer says.
impl<T: Value> Value for Option<T> {
    fn parse(text: &str) -> Result<Option<T>, String> {
        if text.is_empty() || text.eq_ignore_ascii_case("none") { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::show)
    }

    fn mask(text: &str) -> String {
        T::mask(text)
    }

    fn read(raw: &OsStr, home: Option<&Path>) -> Result<Option<T>, String> {
        match raw.to_str() {
            Some(text) if text.trim().is_empty() || text.trim().eq_ignore_ascii_case("none") => Ok(None),
            _ => T::read(raw, home).map(Some),
        }
    }
}

impl Value for bool {
    /// The words that pydantic takes for a boolean.
    fn parse(text: &str) -> Result<bool, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Ok(true),
            "false" | "0" | "no" | "off" | "f" | "n" => Ok(false),
            _ => Err("neither true nor false".to_owned()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A whole number, as the SDK reads its own.
impl Value for u32 {
    fn parse(text: &str) -> Result<u32, String> {
        let (is_negative, digits) = python::int(text).ok_or("not a whole number")?;
        match digits.parse() {
            Ok(number) if !is_negative || number == 0 => Ok(number),
            _ => Err(if is_negative { "negative" } else { "too large" }.to_owned()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Duration, String> {
        units::parse_duration(text).map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        units::print_duration(*self)
    }
}

impl Value for ByteSize {
    fn parse(text: &str) -> Result<ByteSize, String> {
        text.parse().map_err(|error: units::UnitError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<PathBuf, String> {
        Self::read(OsStr::new(text), None)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }

    fn read(raw: &OsStr, home: Option<&Path>) -> Result<PathBuf, String> {
        if raw.is_empty() {
            return Err("empty".to_owned());
        }
        Ok(expand_home(Path::new(raw), home))
    }
}

impl Value for SocketAddr {
    /// Reads `127.0.0.1:6745`, `[::1]:6745`, `localhost:6745` and `:6745`, the last two on IPv4's loopback.
    ///
    /// A missing host doesn't mean every address, as it does elsewhere: opening the intake has to be said in full.
    fn parse(text: &str) -> Result<SocketAddr, String> {
        let reason = || "not an IP address and port such as 127.0.0.1:6745".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(reason)?;
        if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|_| is_number).ok_or_else(reason)?;
            return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        }
        text.parse().map_err(|_| reason())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for ServerUrl {
    fn parse(text: &str) -> Result<ServerUrl, String> {
        text.parse().map_err(|error: super::ServerUrlError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        hide_user_info(text)
    }
}

/// A text that travels in a header, such as the workspace.
impl Value for String {
    fn parse(text: &str) -> Result<String, String> {
        check_header(text)?;
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for Secret {
    fn parse(text: &str) -> Result<Secret, String> {
        check_header(text)?;
        Ok(Secret::new(text))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        Secret::new(text).to_string()
    }
}

/// What makes a key is for those who use it to say; see [`crate::config`].
impl Value for KeyText {
    fn parse(text: &str) -> Result<KeyText, String> {
        Ok(KeyText::new(text))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        KeyText::new(text).to_string()
    }
}

/// The SDK sends these texts as header values; found here, the mistake is named once instead of in every request.
fn check_header(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    http::HeaderValue::from_str(text).map(|_| ()).map_err(|_| "holds a character that a header cannot carry".to_owned())
}

/// A setting that is one word of several.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$of_variant:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$of_variant])* $variant),+ }

        impl $name {
            /// Returns the word as it is configured.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Value for $name {
            fn parse(text: &str) -> Result<$name, String> {
                $(if text.eq_ignore_ascii_case($word) { return Ok($name::$variant); })+
                Err(format!("not one of {}", [$($word),+].join(", ")))
            }

            fn show(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

words! {
    /// The SDK's log levels, from much to little.
    LogLevel { Debug = "DEBUG", Info = "INFO", Warning = "WARNING", Error = "ERROR", Critical = "CRITICAL" }
}

words! {
    /// How a log line is written.
    LogFormat { Text = "text", Json = "json" }
}

words! {
    /// What happens to a new message when the store has no room.
    WhenFull {
        /// The client gets 503 and still has the message.
        Refuse = "refuse",
        /// The oldest messages make room and are counted as dropped.
        DropOldest = "drop_oldest",
    }
}

/// A limit on a value; the text says what is allowed.
pub(super) type Limit<'a, T> = &'a dyn Fn(&T) -> Result<(), String>;

pub(super) fn any<T>(_: &T) -> Result<(), String> {
    Ok(())
}

/// Allows `min` to `max`, both included.
pub(super) fn within<T: Value + PartialOrd>(min: T, max: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| {
        if (&min..=&max).contains(&value) {
            Ok(())
        } else {
            Err(format!("not between {} and {}", min.show(), max.show()))
        }
    }
}

/// Allows `min` and more.
pub(super) fn at_least<T: Value + PartialOrd>(min: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| if *value >= min { Ok(()) } else { Err(format!("less than {}", min.show())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_the_words_that_pydantic_knows() {
        for text in ["true", "TRUE", "1", "yes", "On", "t", "Y"] {
            assert_eq!(bool::parse(text), Ok(true), "{text}");
        }
        for text in ["false", "False", "0", "no", "OFF", "f", "n"] {
            assert_eq!(bool::parse(text), Ok(false), "{text}");
        }
        for text in ["", "2", "ja", "enabled"] {
            assert!(bool::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_without_a_host_stays_on_this_machine() {
        for text in [":6745", "localhost:6745", "127.0.0.1:6745"] {
            assert_eq!(SocketAddr::parse(text).expect(text).to_string(), "127.0.0.1:6745");
        }
        assert_eq!(SocketAddr::parse("[::1]:0").expect("valid").to_string(), "[::1]:0");
        assert_eq!(SocketAddr::parse("0.0.0.0:80").expect("valid").to_string(), "0.0.0.0:80");
        for text in ["", "6745", "127.0.0.1", "host.example:80", ":65536", ":+1", "::1:6745x", "localhost:"] {
            assert!(SocketAddr::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_refused_with_the_reason() {
        assert_eq!(u32::parse("50"), Ok(50));
        assert_eq!(u32::parse("ten"), Err("not a whole number".into()));
        assert_eq!(u32::parse("0.5"), Err("not a whole number".into()));
        assert_eq!(u32::parse("-1"), Err("negative".into()));
        assert_eq!(u32::parse("4294967296"), Err("too large".into()));
    }

    #[test]
    fn words_have_no_case_and_a_wrong_one_lists_the_right_ones() {
        assert_eq!(LogLevel::parse("warning"), Ok(LogLevel::Warning));
        assert_eq!(WhenFull::parse("drop_oldest"), Ok(WhenFull::DropOldest));
        assert_eq!(WhenFull::parse("block"), Err("not one of refuse, drop_oldest".into()));
    }

    #[test]
    fn a_header_text_with_a_line_break_is_refused() {
        assert!(Secret::parse("key\nX-Other: 1").is_err());
        assert!(String::parse("").is_err());
    }

    #[test]
    fn limits_hold_at_their_boundary() {
        let limit = within(1_u32, 3);
        assert_eq!([0, 1, 3, 4].map(|value| limit(&value).is_ok()), [false, true, true, false]);
        assert_eq!(limit(&4), Err("not between 1 and 3".into()));
        assert!(at_least(2_u32)(&2).is_ok() && at_least(2_u32)(&1).is_err());
    }
}
