//! Connection errors, in words for people.

use std::error::Error;
use std::io;

use thiserror::Error;

/// Any error: of a connection, or why a streamed body was cut short.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A connection error that the HTTP clients don't have: an unresolvable name, a proxy's refusal, unusable settings.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub(super) struct ConnectFault {
    reason: String,
}

impl ConnectFault {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    /// The name does not resolve.
    pub(super) fn unresolved(name: &str, reason: &str) -> Self {
        Self::new(match resolver_words(reason) {
            "" => format!("cannot resolve {name}"),
            words => format!("cannot resolve {name}: {words}"),
        })
    }

    /// The proxy is unreachable.
    pub(super) fn at_the_proxy(reason: &str) -> Self {
        Self::new(format!("no connection to the proxy: {reason}"))
    }

    /// Returns the fault in a chain of errors, if there is one.
    pub(super) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The error wrapped by an I/O error is not one of its sources.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Self::find(wrapped),
            None => Self::find(error.source()?),
        }
    }
}

impl From<ConnectFault> for io::Error {
    fn from(fault: ConnectFault) -> Self {
        io::Error::new(io::ErrorKind::NotConnected, fault)
    }
}

/// Returns the text of the root cause of an error chain: the outer errors only say "error".
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Strips Rust's prefix from a resolver's error text.
fn resolver_words(reason: &str) -> &str {
    reason.strip_prefix("failed to lookup address information: ").unwrap_or(reason)
}

/// Formats a system error for use inside a sentence: lower case, without its number.
pub(super) fn words(reason: &str) -> String {
    let reason = reason.strip_prefix("io: ").unwrap_or(reason);
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    let mut chars = reason.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_errors_name_the_host() {
        let fault =
            ConnectFault::unresolved("opik.test", "failed to lookup address information: Name does not resolve");
        assert_eq!(fault.to_string(), "cannot resolve opik.test: Name does not resolve");
        let wrapped = io::Error::other(io::Error::from(fault.clone()));
        assert_eq!(ConnectFault::find(&wrapped), Some(&fault));
        assert_eq!(ConnectFault::find(&io::Error::other("x")), None);
    }
}
