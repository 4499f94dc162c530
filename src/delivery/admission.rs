//! Admission: whether a protected write is forwarded, stored or refused.

use std::time::Duration;

use super::unprotected::{KnownBacklog, Passage, passage};

/// The agent's knowledge of the server when a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reachability {
    /// No ping has a result yet, or the last one was answered.
    Presumed,
    /// The last ping or send failed, and no ping was answered since.
    Unavailable,
}

/// The state of earlier messages of the same lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneState {
    /// The lane has no message in the store.
    Clear,
    /// No queued message shares an entity with this write, and the lane delivers: it is neither held nor failing.
    Disjoint,
    /// This write has to be queued behind earlier messages.
    Waiting,
    /// The store can't be used: no write can be stored, and one that may conflict with its messages must not pass.
    StoreUnusable(KnownBacklog),
}

/// The decision about a protected write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Forward it; store it if that fails and a retry may succeed.
    Forward,
    /// Forward it, and return the result to the client, because it can't be stored.
    ForwardOnly,
    /// Store it behind earlier messages, then acknowledge it.
    Register,
    /// Refuse it for now, with this message: it can neither be stored nor overtake earlier messages.
    Refuse(&'static str),
}

/// Decides about a protected write.
///
/// A write never overtakes an earlier one of its lane about the same entity, available server or not; and during an
/// outage nothing is tried, so that an application gets its answer without latency.
///
/// A write that is disjoint from all queued messages is forwarded even while a backlog drains, so that live traffic
/// does not wait for the night's. That overtakes nothing: the caller asks the store while it holds the write's entity
/// locks, so a write accepted later about these entities comes after it, and one accepted earlier is either on the
/// server or in the store's answer.
pub(crate) fn admit(reachability: Reachability, lane: LaneState) -> Admission {
    match (lane, reachability) {
        (LaneState::StoreUnusable(known), _) => unprotected(known, false),
        (LaneState::Waiting, _) => Admission::Register,
        (LaneState::Clear | LaneState::Disjoint, Reachability::Unavailable) => Admission::Register,
        (LaneState::Clear | LaneState::Disjoint, Reachability::Presumed) => Admission::Forward,
    }
}

/// Decides about a protected write while the store can't be used; see [`super::unprotected`].
pub(crate) fn unprotected(known: KnownBacklog, follows_all: bool) -> Admission {
    match passage(known, follows_all) {
        Passage::Pass => Admission::ForwardOnly,
        Passage::Refuse(why) => Admission::Refuse(why),
    }
}

/// The shortest timeout of a forwarded write, under any memory pressure.
pub(crate) const FORWARD_PATIENCE_SHORT: Duration = Duration::from_secs(30);

/// Returns the timeout of a forwarded write that can be stored.
///
/// As long as configured, which is longer than the timeouts of proxies in front of a server. But a server that hangs
/// for so long under load would fill the memory for bodies, and new writes would be refused: so once half of the
/// memory is taken, writes wait for [`FORWARD_PATIENCE_SHORT`] at most and are stored then.
pub(crate) fn forward_patience(configured: Duration, memory_free: u64, memory_max: u64) -> Duration {
    if memory_free < memory_max / 2 { configured.min(FORWARD_PATIENCE_SHORT) } else { configured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_of_forwarded_writes_is_short_once_memory_is_half_full() {
        let seconds = Duration::from_secs;
        for (configured, free, expected) in
            [(95, 100, 95), (95, 50, 95), (95, 49, 30), (95, 0, 30), (5, 0, 5), (600, 100, 600)]
        {
            assert_eq!(
                forward_patience(seconds(configured), free, 100),
                seconds(expected),
                "{configured} s, {free} free"
            );
        }
    }

    #[test]
    fn only_writes_that_overtake_nothing_are_forwarded_to_an_available_server() {
        use LaneState::{Clear, Disjoint, StoreUnusable, Waiting};
        use Reachability::{Presumed, Unavailable};
        for (reachability, lane, expected) in [
            (Presumed, Clear, Admission::Forward),
            (Presumed, Disjoint, Admission::Forward),
            (Unavailable, Disjoint, Admission::Register),
            (Presumed, Waiting, Admission::Register),
            (Unavailable, Clear, Admission::Register),
            (Unavailable, Waiting, Admission::Register),
            (Presumed, StoreUnusable(KnownBacklog::NeverWas), Admission::ForwardOnly),
            (Unavailable, StoreUnusable(KnownBacklog::Empty), Admission::ForwardOnly),
        ] {
            assert_eq!(admit(reachability, lane), expected, "{reachability:?} {lane:?}");
        }
        let refused = admit(Presumed, StoreUnusable(KnownBacklog::Unknown));
        assert!(matches!(refused, Admission::Refuse(_)), "{refused:?}");
    }
}
