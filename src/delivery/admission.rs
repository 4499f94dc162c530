//! What happens to a protected write at the door.

use std::time::Duration;

use super::unprotected::{KnownBacklog, Passage, passage};

/// What the agent knows of the server when a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// No ping was answered or failed yet, or the last one was answered.
    Presumed,
    /// The last ping or send failed, and no ping was answered since.
    Unavailable,
}

/// What is known about messages of the same lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Nothing of it waits in the store.
    Clear,
    /// Earlier messages wait, none of them about an entity of this write, and the lane is on its way: neither held nor
    /// in trouble.
    Apart,
    /// Earlier messages wait, and this write has to wait behind them.
    Waiting,
    /// The store can't be used: nothing can be kept, and what may conflict with its messages must not pass.
    StoreUnusable(KnownBacklog),
}

/// What to do with a protected write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Send it on; store it when that fails in a way that time can heal.
    Forward,
    /// Send it on; give the client whatever comes of it, because nothing can be kept.
    ForwardOnly,
    /// Store it behind what waits, then acknowledge it.
    Register,
    /// Refuse it for now, with these words: it can neither be kept nor be sent ahead of what waits.
    Refuse(&'static str),
}

/// Decides about a protected write (design.md, section 3).
///
/// A write never overtakes an earlier one of its lane about the same entity, whatever the connection is; and while the
/// server is away nothing is tried, so that an application in an outage gets its answer at once.
///
/// A write about entities that nothing stored is about is forwarded even while a backlog drains, so that live traffic
/// does not wait for the night's. That overtakes nothing: the caller asks the store while it has the write's turn, so
/// whatever is accepted later about these entities comes after it, and what was accepted earlier is either on the server
/// or would be in the store's answer.
pub fn admit(reachability: Reachability, lane: LaneState) -> Admission {
    match (lane, reachability) {
        (LaneState::StoreUnusable(known), _) => unprotected(known, false),
        (LaneState::Waiting, _) => Admission::Register,
        (LaneState::Clear | LaneState::Apart, Reachability::Unavailable) => Admission::Register,
        (LaneState::Clear | LaneState::Apart, Reachability::Presumed) => Admission::Forward,
    }
}

/// Decides about a protected write while the store can't be used; see [`super::unprotected`].
pub fn unprotected(known: KnownBacklog, follows_all: bool) -> Admission {
    match passage(known, follows_all) {
        Passage::Pass => Admission::ForwardOnly,
        Passage::Refuse(why) => Admission::Refuse(why),
    }
}

/// How long a forwarded write waits for its answer at least, however much is held meanwhile.
pub const FORWARD_PATIENCE_SHORT: Duration = Duration::from_secs(30);

/// Returns how long a forwarded write that can be stored waits for the server's answer.
///
/// As long as configured, which is longer than the fronts of a server take to answer for it. A server that is silent for
/// so long under load would fill the memory for bodies, though, and writes that come then would be refused: so once half
/// of it is taken, writes wait for [`FORWARD_PATIENCE_SHORT`] at most and are stored then.
pub fn forward_patience(configured: Duration, memory_free: usize, memory_max: usize) -> Duration {
    if memory_free < memory_max / 2 { configured.min(FORWARD_PATIENCE_SHORT) } else { configured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_for_a_silent_server_only_while_there_is_memory_for_them() {
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
    fn only_what_overtakes_nothing_is_forwarded_and_only_to_a_server_that_is_there() {
        use LaneState::{Apart, Clear, StoreUnusable, Waiting};
        use Reachability::{Presumed, Unavailable};
        for (reachability, lane, expected) in [
            (Presumed, Clear, Admission::Forward),
            (Presumed, Apart, Admission::Forward),
            (Unavailable, Apart, Admission::Register),
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
