//! Why a write can't be kept, and what is known of its body by then.

use bytes::Bytes;

use crate::intake::shared::STORE_RETRY_AFTER;
use crate::intake::spool::{NoSpool, Payload};
use crate::memory::Grant;
use crate::protocol::answers::{Reply, error, unavailable};

/// Why a write can't be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unkept {
    /// Its body is larger than this as sent (`max_body_size`).
    Body(u64),
    /// Its body is larger than this when decoded (`max_inflated_size`).
    Inflated(u64),
    /// Its body has no items to divide it by, and is larger than this, the maximum for such bodies.
    Indivisible(u64),
    /// Its body is larger than the store may be (`max_size`).
    Store(u64),
    /// There is no room on the disk now.
    NoRoom,
    /// The disk fails.
    NoDisk,
}

impl Unkept {
    /// Returns why a body is not spooled; `bytes_max` is how many bytes spools may have.
    pub(super) fn of(why: NoSpool, bytes_max: u64) -> Self {
        match why {
            NoSpool::TooLarge => Self::Store(bytes_max),
            NoSpool::Full => Self::NoRoom,
            NoSpool::Failed => Self::NoDisk,
        }
    }

    /// Returns the answer while the server is unavailable: 413 when it can never be kept, 503 when a retry may
    /// help.
    pub(super) fn reply(self) -> Reply {
        let too_large = |text: String| error(413, &text);
        match self {
            Self::Body(limit) => {
                too_large(format!("the body is larger than {limit} bytes, opik-offline's limit (max_body_size)"))
            }
            Self::Inflated(limit) => too_large(format!(
                "the body is larger than {limit} bytes when decoded, opik-offline's limit (max_inflated_size)"
            )),
            Self::Indivisible(limit) => too_large(format!(
                "the body is larger than {limit} bytes, what opik-offline keeps of a body that it cannot divide, and the \
                 Opik server cannot be reached"
            )),
            Self::Store(limit) => too_large(format!(
                "the body is larger than {limit} bytes, the largest size of opik-offline's store (max_size), and the \
                 Opik server cannot be reached"
            )),
            Self::NoRoom => unavailable(
                "opik-offline has no room on its disk for this body now, and the Opik server cannot be reached",
                STORE_RETRY_AFTER,
            ),
            Self::NoDisk => unavailable(
                "opik-offline cannot write this body to its disk, and the Opik server cannot be reached",
                STORE_RETRY_AFTER,
            ),
        }
    }

    /// Returns the limit that was exceeded, as it is logged.
    pub(super) fn limit(self) -> Option<&'static str> {
        match self {
            Self::Body(_) => Some("bytes of a body"),
            Self::Inflated(_) => Some("bytes of an inflated body"),
            Self::Indivisible(_) => Some("bytes of a body that can't be divided"),
            Self::Store(_) | Self::NoRoom => Some("bytes of spooled bodies"),
            Self::NoDisk => None,
        }
    }
}

/// The part of a body that was read.
pub(super) struct PartialBody {
    pub(super) payload: Payload,
    /// Memory for it.
    pub(super) memory: Option<Grant>,
    /// False when its client still has more to send.
    pub(super) is_whole: bool,
}

impl PartialBody {
    /// Returns a body of which nothing was read.
    pub(super) fn unread() -> Self {
        Self { payload: Payload::InMemory(Bytes::new()), memory: None, is_whole: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_asked_to_retry_only_where_that_can_help() {
        for (why, status, names) in [
            (Unkept::Body(7), 413, "max_body_size"),
            (Unkept::Inflated(7), 413, "max_inflated_size"),
            (Unkept::Indivisible(7), 413, "cannot divide"),
            (Unkept::Store(7), 413, "max_size"),
            (Unkept::NoRoom, 503, "no room"),
            (Unkept::NoDisk, 503, "disk"),
        ] {
            let reply = why.reply();
            assert_eq!((reply.status, reply.retry_after_seconds.is_some()), (status, status == 503), "{why:?}");
            assert!(reply.body.contains(names), "{why:?}: {}", reply.body);
        }
    }
}
