//! Why no connection came about, in words for people.

use std::error::Error;
use std::io;

use thiserror::Error;

/// Why no connection came about: names that can't be resolved, proxies that refuse, settings that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub(super) struct ConnectFault {
    reason: String,
}

impl ConnectFault {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    /// A name server, or the system, knows no address.
    pub(super) fn unresolved(name: &str, reason: &str) -> Self {
        Self::new(match resolver_words(reason) {
            "" => format!("cannot resolve {name}"),
            words => format!("cannot resolve {name}: {words}"),
        })
    }

    /// The proxy itself can't be reached.
    pub(super) fn at_the_proxy(reason: &str) -> Self {
        Self::new(format!("no connection to the proxy: {reason}"))
    }

    /// Returns the fault in a chain of errors, if there is one.
    pub(super) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error wraps is not among its sources.
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

/// Returns a resolver's words without what Rust puts before them.
fn resolver_words(reason: &str) -> &str {
    reason.strip_prefix("failed to lookup address information: ").unwrap_or(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_resolved_is_named() {
        let fault =
            ConnectFault::unresolved("opik.test", "failed to lookup address information: Name does not resolve");
        assert_eq!(fault.to_string(), "cannot resolve opik.test: Name does not resolve");
        let wrapped = io::Error::other(io::Error::from(fault.clone()));
        assert_eq!(ConnectFault::find(&wrapped), Some(&fault));
        assert_eq!(ConnectFault::find(&io::Error::other("x")), None);
    }
}
