//! Unprotected writes: which ones reach the server while the message store can't be used.
//!
//! Such a write can't be queued behind stored messages, so it must not overtake them either: an acknowledged deletion
//! would be undone, and an older update would win. A write is refused unless it is provably disjoint from everything
//! stored. Its client still has it and retries; the store may be usable by then.

/// The known content of a store that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownBacklog {
    /// There is no store, so it never had a message.
    NeverWas,
    /// It has no waiting message for this server.
    Empty,
    /// Its entities can be read, although it can't be used.
    Holds {
        /// Messages for this server are still waiting.
        waiting: bool,
        /// The write is, or may be, about an entity of one of them, or depends on a create that the server refused.
        conflicting: bool,
    },
    /// It can't be read.
    Unknown,
}

/// The decision about a live write while the store can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It is forwarded, and its client gets the result.
    Pass,
    /// It is refused with 503, `Retry-After` and this message.
    Refuse(&'static str),
}

const CONFLICTS: &str = "earlier writes wait in opik-offline's message store, which cannot be used now; \
    this request must not overtake them, send it again later";
const FOLLOWS_ALL: &str = "earlier writes wait in opik-offline's message store, which cannot be used now, \
    and this request depends on all of them; send it again later";
const UNKNOWN: &str = "opik-offline's message store cannot be read now, and earlier writes may wait in it; \
    this request must not overtake them, send it again later";

const MOVED: &str = "earlier writes wait in a message store that was moved away from opik-offline; \
    this request must not overtake them, send it again later";

/// Returns why a write is refused because of messages waiting in a store that was moved away, if so; arguments as of
/// [`passage`].
pub(crate) fn behind_moved(known: KnownBacklog, follows_all: bool) -> Option<&'static str> {
    match passage(known, follows_all) {
        Passage::Pass => None,
        Passage::Refuse(_) => Some(MOVED),
    }
}

/// Decides about a protected write while the store can't be used. `follows_all`: its effect depends on all earlier
/// writes (a deletion by filter).
pub(crate) fn passage(known: KnownBacklog, follows_all: bool) -> Passage {
    match known {
        KnownBacklog::NeverWas | KnownBacklog::Empty => Passage::Pass,
        KnownBacklog::Holds { conflicting: true, .. } => Passage::Refuse(CONFLICTS),
        KnownBacklog::Holds { waiting: true, .. } if follows_all => Passage::Refuse(FOLLOWS_ALL),
        KnownBacklog::Holds { .. } => Passage::Pass,
        KnownBacklog::Unknown => Passage::Refuse(UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_provably_disjoint_writes_pass() {
        use KnownBacklog::{Empty, Holds, NeverWas, Unknown};
        let holds = |waiting, conflicting| Holds { waiting, conflicting };
        for (known, follows_all, passes) in [
            (NeverWas, false, true),
            (NeverWas, true, true),
            (Empty, false, true),
            (Empty, true, true),
            (holds(false, false), false, true),
            (holds(false, false), true, true),
            (holds(true, false), false, true),
            (holds(true, false), true, false),
            (holds(true, true), false, false),
            (holds(true, true), true, false),
            // Only refused messages are left, and the write depends on one of them.
            (holds(false, true), false, false),
            (holds(false, true), true, false),
            (Unknown, false, false),
            (Unknown, true, false),
        ] {
            let passage = passage(known, follows_all);
            assert_eq!(passage == Passage::Pass, passes, "{known:?}, follows all: {follows_all}");
        }
    }
}
