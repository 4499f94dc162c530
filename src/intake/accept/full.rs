//! A write that can't be stored while the server counts as unavailable: the server is tried before it is refused.
//!
//! The agent may know that the server was lost and not yet that it is back: it learns that from the next ping, which may
//! be minutes away if the user set the interval. A write that can be stored need not care.
//!
//! | why it can't be stored | how the server is tried |
//! | --- | --- |
//! | the store has no room, or is busy | with the write itself, see below |
//! | its body is too large, or finds no room on the disk | with a ping ([`Shared::try_server`]): a body that streams through is lost to a server that is away, and its client would have to send all of it again |
//! | the store can't be used | with the write, always ([`deliver`](super::deliver)) |
//!
//! # A store without room
//!
//! ```text
//! no room ─┬─ an earlier message that it could conflict with is queued ──────────────────────▶ 503
//!          └─ none is ─┬─ the server counts as available ─▶ forward ─────────────┬─ answered ▶ the server's answer
//!                      └─ it counts as unavailable ─▶ one at a time, as a probe ─┴─ not ─────▶ 503
//! ```
//!
//! # Load
//!
//! As behind a half-open circuit breaker, an unavailable server is probed by one write at a time, with
//! [`AWAY_TIMEOUT`]. Concurrent writes wait for their turn, with [`TURN_TIMEOUT`], and don't probe once a probe that
//! began after they arrived has failed, or one has succeeded. So one connection is tried for any number of refused
//! writes: the added latency is a fraction of a millisecond if the server refuses connections, and mostly a second if
//! it swallows them.

use std::time::{Duration, Instant};

use tracing::info;

use super::not_stored::NotStored;
use super::write::{Forwarded, WaitFor, Write};
use crate::intake::forward::ClientAnswer;
use crate::intake::limits::AWAY_TIMEOUT;
use crate::intake::shared::Shared;
use crate::monitor::{Availability, Change};

/// The timeout of a write that waits for those that probe the server before it.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a write was not sent.
const AWAY: &str = "the Opik server cannot be reached, or takes no such write now";

/// The decision about a write that can't be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FullStoreAction {
    /// It is forwarded like any other.
    Forward,
    /// It probes whether the server is back.
    Probe,
    /// It is refused: the server was unavailable a moment ago.
    Refuse,
}

/// Decides about a write that arrived at `came`, when the last failed probe began at `failed`.
fn action(availability: Availability, in_trouble: bool, came: Instant, failed: Option<Instant>) -> FullStoreAction {
    match availability {
        // A failure or timeout of one lane says nothing about the others.
        Availability::Available | Availability::Unknown if in_trouble => FullStoreAction::Probe,
        Availability::Available | Availability::Unknown => FullStoreAction::Forward,
        Availability::Unavailable if failed.is_some_and(|failed| failed >= came) => FullStoreAction::Refuse,
        Availability::Unavailable => FullStoreAction::Probe,
    }
}

impl Write {
    /// Sends a write that found no room in the store to the server, or refuses it. The caller holds its entity locks.
    pub(super) async fn send_unstored(&self, not_stored: NotStored) -> ClientAnswer {
        let shared = &self.shared;
        let came = Instant::now();
        let (lane, bucket) = (&self.message.lane, self.message.message_type.bucket());
        if let Some(why) = shared.must_not_overtake(lane, &self.message.touches, bucket) {
            return not_stored.refuse_unsent(shared, why);
        }
        let in_trouble = shared.connection.lanes().is_failing(lane);
        if action(shared.connection.availability(), in_trouble, came, None) == FullStoreAction::Forward {
            let sent = self.forward(WaitFor::AnswerOrOutage).await;
            return not_stored.unless_answered(shared, sent);
        }
        let Ok(mut failed) = tokio::time::timeout(TURN_TIMEOUT, shared.listener.full_store_probe.lock()).await else {
            return not_stored.refuse_unsent(shared, "the Opik server does not answer");
        };
        match action(shared.connection.availability(), in_trouble, came, *failed) {
            FullStoreAction::Forward => {
                drop(failed);
                let sent = self.forward(WaitFor::AnswerOrOutage).await;
                not_stored.unless_answered(shared, sent)
            }
            FullStoreAction::Refuse => not_stored.refuse_unsent(shared, AWAY),
            FullStoreAction::Probe => {
                let began = Instant::now();
                let tried = tokio::time::timeout(AWAY_TIMEOUT, self.forward(WaitFor::Answer)).await;
                let tried = tried.unwrap_or(Forwarded::Keep { fallback: None });
                match tried {
                    Forwarded::Keep { .. } => *failed = Some(began),
                    Forwarded::Answered(_) => {
                        if shared.connection.answered() == Change::Restored {
                            info!(target: "connection_monitor", "the Opik server is available: it answered a write");
                        }
                    }
                }
                drop(failed);
                not_stored.unless_answered(shared, tried)
            }
        }
    }
}

impl Shared {
    /// Has an unavailable server pinged, and waits for the result: a write that can't be kept should not be refused
    /// because the last ping is a while ago. One request waits at a time; the others wait for it, with
    /// [`TURN_TIMEOUT`], and take its result if its ping began after they arrived.
    pub(super) async fn try_server(&self) {
        let came = Instant::now();
        if self.connection.availability() != Availability::Unavailable {
            return;
        }
        let Ok(_turn) = tokio::time::timeout(TURN_TIMEOUT, self.listener.unkept_ping.lock()).await else { return };
        if !self.connection.is_pinged_since(came) {
            let (connection, hurry) = (self.connection.clone(), self.hurry.clone());
            // Its result is in the connection.
            let _ = tokio::task::spawn_blocking(move || connection.look_again(AWAY_TIMEOUT, &hurry)).await;
        }
    }
}

impl NotStored {
    /// Returns the server's answer, or the refusal when the server did not decide. Of its other answers only a rate
    /// limit helps the client more than the refusal.
    fn unless_answered(self, shared: &Shared, sent: Forwarded) -> ClientAnswer {
        match sent {
            Forwarded::Answered(answer) => {
                shared.collector.full().passed_on();
                answer
            }
            Forwarded::Keep { fallback: Some(answer) } if answer.status() == http::StatusCode::TOO_MANY_REQUESTS => {
                self.count(shared);
                answer
            }
            Forwarded::Keep { .. } => self.refuse_unsent(shared, AWAY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_server_is_probed_once_for_concurrent_writes() {
        use Availability::{Available, Unavailable, Unknown};
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for (availability, in_trouble, failed, expected) in [
            (Available, false, None, FullStoreAction::Forward),
            (Available, false, Some(9), FullStoreAction::Forward),
            (Available, true, Some(9), FullStoreAction::Probe),
            (Unknown, false, Some(9), FullStoreAction::Forward),
            (Unavailable, false, None, FullStoreAction::Probe),
            (Unavailable, false, Some(4), FullStoreAction::Probe),
            (Unavailable, false, Some(5), FullStoreAction::Refuse),
            (Unavailable, true, Some(9), FullStoreAction::Refuse),
        ] {
            let found = action(availability, in_trouble, at(5), failed.map(at));
            assert_eq!(found, expected, "{availability:?} {in_trouble} {failed:?}");
        }
    }
}
