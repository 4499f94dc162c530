//! Parsing, display and validation of each type of setting.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::python;
use super::secret::{KeyText, Secret};
use super::server_url::{ServerUrl, ServerUrlError, explain, hide_user_info};
use super::sources::expand_home;
use super::units::{self, ByteSize};

/// A type that a setting can have.
///
/// A parse error is plain text because only people read it; it never quotes the value.
pub(super) trait Value: Sized {
    fn parse(text: &str) -> Result<Self, String>;

    /// Returns the form that `healthcheck` prints.
    fn show(&self) -> String;

    /// Masks a text that failed to parse, so that it can be printed.
    fn mask(text: &str) -> String {
        text.to_owned()
    }

    /// Parses the raw value of a layer. Only paths may be other than text.
    fn read(raw: &OsStr, _home: Option<&Path>) -> Result<Self, String> {
        let text = raw.to_str().ok_or("not valid UTF-8")?;
        Self::parse(text.trim())
    }
}

/// An optional setting: `none` overrides a value of a lower layer.
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
    /// The words that pydantic parses as a boolean.
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

/// A whole number, parsed as the SDK does.
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
    /// Parses `127.0.0.1:6745`, `[::1]:6745`, `localhost:6745` and `:6745`; the last two mean IPv4 loopback.
    ///
    /// Unlike elsewhere, a missing host does not mean all addresses: a public listener has to be explicit.
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
        text.parse().map_err(|error: ServerUrlError| explain(text, error))
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn mask(text: &str) -> String {
        hide_user_info(text)
    }
}

/// A text that is sent in a header, such as the workspace.
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

/// Any text; the store validates the key ([`crate::config`]).
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

/// The SDK sends these texts as header values; an invalid one is reported here once instead of with every request.
fn check_header(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    http::HeaderValue::from_str(text).map(|_| ()).map_err(|_| "holds a character that a header cannot carry".to_owned())
}

/// A setting that is one word of a fixed set.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$of_variant:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$of_variant])* $variant),+ }

        impl $name {
            /// Returns the word in configuration syntax.
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
    /// The SDK's log levels, from verbose to quiet.
    LogLevel { Debug = "DEBUG", Info = "INFO", Warning = "WARNING", Error = "ERROR", Critical = "CRITICAL" }
}

words! {
    /// The format of log lines.
    LogFormat { Text = "text", Json = "json" }
}

words! {
    /// The policy for new messages when the store is full.
    WhenFull {
        /// Rejects them: the client gets a 503 and still has the message.
        Refuse = "refuse",
        /// Evicts the oldest messages and counts them as dropped.
        DropOldest = "drop_oldest",
    }
}

words! {
    /// When a write is acknowledged that was stored.
    AcknowledgeAt {
        /// After the local commit.
        Local = "local",
        /// Once its copy is in the fleet's depot.
        Fleet = "fleet",
    }
}

words! {
    /// The place of secrets in copies in the fleet's depot.
    FleetCredentials {
        /// Inside the copies, which are sealed.
        Sealed = "sealed",
        /// Nowhere: copies name them by fingerprint.
        Reference = "reference",
    }
}

words! {
    /// The policy for writes that wait for a copy in a depot that is away.
    DepotAwayPolicy {
        /// Acknowledges them after the local commit, and counts them.
        Local = "local",
        /// Rejects them: the client gets a 503 and still has the message.
        Refuse = "refuse",
    }
}

words! {
    /// The automatic pace of replay, where batch and delay are not set.
    ReplayPace {
        /// Shared for agents with a depot, steady otherwise.
        Auto = "auto",
        /// The documented floor of 100 messages a second, and more while the server keeps up.
        Steady = "steady",
        /// From the rate at which the backlog was accepted, without a floor: many agents share a server.
        Shared = "shared",
    }
}

/// A validator of a value; the error text names the allowed values.
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
    fn boolean_words_match_pydantic() {
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
    fn addresses_without_host_are_loopback() {
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
    fn invalid_whole_numbers_are_rejected_with_the_reason() {
        assert_eq!(u32::parse("50"), Ok(50));
        assert_eq!(u32::parse("ten"), Err("not a whole number".into()));
        assert_eq!(u32::parse("0.5"), Err("not a whole number".into()));
        assert_eq!(u32::parse("-1"), Err("negative".into()));
        assert_eq!(u32::parse("4294967296"), Err("too large".into()));
    }

    #[test]
    fn words_are_case_insensitive_and_an_unknown_one_lists_the_known() {
        assert_eq!(LogLevel::parse("warning"), Ok(LogLevel::Warning));
        assert_eq!(WhenFull::parse("drop_oldest"), Ok(WhenFull::DropOldest));
        assert_eq!(WhenFull::parse("block"), Err("not one of refuse, drop_oldest".into()));
    }

    #[test]
    fn header_texts_with_line_breaks_are_rejected() {
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
