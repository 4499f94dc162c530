//! What happens to a protected write at the door.

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
    /// Earlier messages wait.
    Waiting,
    /// The store can't be read or written: it promises nothing, and it holds nothing back.
    StoreUnusable,
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
}

/// Decides about a protected write (design.md, section 3).
///
/// A write never overtakes an earlier one of its lane that waits, whatever the connection is; and while the server is
/// away nothing is tried, so that an application in an outage gets its answer at once.
pub fn admit(reachability: Reachability, lane: LaneState) -> Admission {
    match (lane, reachability) {
        (LaneState::StoreUnusable, _) => Admission::ForwardOnly,
        (LaneState::Waiting, _) => Admission::Register,
        (LaneState::Clear, Reachability::Unavailable) => Admission::Register,
        (LaneState::Clear, Reachability::Presumed) => Admission::Forward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_lane_to_a_server_that_is_there_is_forwarded() {
        use LaneState::{Clear, StoreUnusable, Waiting};
        use Reachability::{Presumed, Unavailable};
        for (reachability, lane, expected) in [
            (Presumed, Clear, Admission::Forward),
            (Presumed, Waiting, Admission::Register),
            (Unavailable, Clear, Admission::Register),
            (Unavailable, Waiting, Admission::Register),
            (Presumed, StoreUnusable, Admission::ForwardOnly),
            (Unavailable, StoreUnusable, Admission::ForwardOnly),
        ] {
            assert_eq!(admit(reachability, lane), expected, "{reachability:?} {lane:?}");
        }
    }
}
