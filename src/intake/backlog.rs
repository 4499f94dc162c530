//! Earlier messages that a write must not overtake: the boundary between the asynchronous side and the store.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use super::forward::{self, ClientAnswer};
use super::shared::{STORE_RETRY_AFTER, Shared};
use crate::delivery::admission::{LaneState, Reachability};
use crate::delivery::backoff::lane_wait;
use crate::delivery::unprotected::{KnownBacklog, behind_moved};
use crate::delivery::verdict::rate_limited;
use crate::message::{Bucket, Lane, Message, Touch};
use crate::monitor::Availability;
use crate::monitor::jitter;
use crate::protocol::answers::unavailable;
use crate::store::{Ahead, BacklogSeen, Hold, now_ms};

/// Converts the store's view of a backlog into the policy's.
fn known(seen: BacklogSeen) -> KnownBacklog {
    match seen {
        BacklogSeen::NeverWas => KnownBacklog::NeverWas,
        BacklogSeen::Empty => KnownBacklog::Empty,
        BacklogSeen::Holds { waiting, conflicting } => KnownBacklog::Holds { waiting, conflicting },
        BacklogSeen::Unknown => KnownBacklog::Unknown,
    }
}

/// Returns why a write that can't be stored may not be sent either, if so.
pub(super) fn why_not_sent(ahead: Ahead, touches: &[Touch], bucket: Bucket) -> Option<&'static str> {
    if ahead.conflicting || ahead.messages > 0 && touches.is_empty() {
        return Some("earlier writes that it must not overtake wait to be delivered");
    }
    ahead.limited.contains(bucket).then_some("the Opik server rate-limits such writes now")
}

/// How long a write waits for the store to be reopened. A disk that hangs must not hold its entity locks forever.
const REFRESH_WAIT_MAX: Duration = Duration::from_secs(30);

impl Shared {
    /// Returns what is known of the server. A request for an unavailable one hastens its next ping.
    pub(super) fn reachability(&self) -> Reachability {
        match self.connection.availability() {
            Availability::Unavailable => {
                self.connection.wanted();
                Reachability::Unavailable
            }
            Availability::Unknown | Availability::Available => Reachability::Presumed,
        }
    }

    /// Waits until a due check or reopening of the store has finished, [`REFRESH_WAIT_MAX`] at most. A separate thread
    /// does that: opening takes as long as migration or recovery does. Concurrent writes continue with the current
    /// state.
    pub(super) async fn refresh_store(&self) {
        if !self.slot.is_due() {
            return;
        }
        let (done, wait) = tokio::sync::oneshot::channel::<()>();
        if self.slot.refresh(move || drop(done)) {
            // The sender is dropped without a value. After a timeout the write continues with the current state as
            // well.
            drop(tokio::time::timeout(REFRESH_WAIT_MAX, wait).await);
        }
    }

    /// Asks the store whether earlier messages are ahead of this one. Called directly on intake's runtime: it is one
    /// indexed query, cheaper than a change of threads.
    pub(super) fn lane_state(&self, message: &Message) -> LaneState {
        let lane = &message.lane;
        // The second time it may be another store, or none: reporting a failure can change that.
        for _ in 0..2 {
            match self.slot.try_with(|store| store.ahead(lane, &message.touches)) {
                Ok(Ahead { messages: 0, conflicting: false, .. }) => return LaneState::Clear,
                Ok(Ahead { conflicting: true, .. } | Ahead { held: true, .. }) => return LaneState::Waiting,
                Ok(ahead) if ahead.limited.contains(message.message_type.bucket()) => return LaneState::Waiting,
                // Without an entity it can't be shown to be disjoint.
                Ok(_) if message.touches.is_empty() => return LaneState::Waiting,
                Ok(_) if self.connection.lanes().is_failing(lane) => return LaneState::Waiting,
                Ok(_) => return LaneState::Disjoint,
                Err(error) => match self.slot.try_get() {
                    Ok(_) => warn!(target: "db_manager", "cannot query the store for earlier messages: {error}"),
                    Err(_) => return LaneState::StoreUnusable(self.backlog_known(&message.touches)),
                },
            }
        }
        // Messages that could not be queried must not be overtaken.
        LaneState::Waiting
    }

    /// Returns whether a write of this lane overtakes nothing that is stored, whatever it touches; `false` also where
    /// that has to be looked into first ([`Shared::refresh_store`], [`Shared::lane_state`]).
    ///
    /// Called once the write is received whole and has its turn: only then have all that it might overtake been
    /// committed.
    pub(super) fn is_lane_clear(&self, lane: &Lane) -> bool {
        !self.slot.is_due()
            && matches!(self.slot.try_with(|store| store.is_clear(lane)), Ok(true))
            && !self.slot.has_moved()
    }

    /// Returns what is known of the messages in a store that can't be used; called where [`ahead`] is.
    ///
    /// [`ahead`]: crate::store::Intake::ahead
    pub(super) fn backlog_known(&self, touches: &[Touch]) -> KnownBacklog {
        known(self.slot.backlog_seen(&self.server, touches))
    }

    /// Returns why a write has to wait for messages in a store that was moved away, if so. Call it after the slot was
    /// queried.
    pub(super) fn behind_moved(&self, touches: &[Touch], follows_all: bool) -> Option<&'static str> {
        behind_moved(known(self.slot.seen_in_moved(&self.server, touches)?), follows_all)
    }

    /// Returns why a write that can't be stored may not be sent either, if so.
    pub(super) fn must_not_overtake(&self, lane: &Lane, touches: &[Touch], bucket: Bucket) -> Option<&'static str> {
        match self.slot.try_with(|store| store.ahead(lane, touches)) {
            Ok(ahead) => why_not_sent(ahead, touches, bucket),
            Err(_) => Some("the messages that wait to be delivered cannot be read now"),
        }
    }

    /// Refuses a write that may conflict with messages in a store that can't be used: its client still has it.
    pub(super) fn refuse_unprotected(&self, why: &str) -> ClientAnswer {
        self.metrics.intake_refused.add(1);
        self.slot.note_refused();
        forward::own_answer(unavailable(why, STORE_RETRY_AFTER))
    }

    /// Records a rate limit of the server's in the store, before the write that met it is registered there.
    pub(super) async fn hold_limited(self: &Arc<Self>, lane: Lane, bucket: Bucket, asked: Option<Duration>) {
        let time = lane_wait(1, jitter(), asked, self.limits.retry_interval);
        let until_ms = now_ms().saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let reason = rate_limited(bucket);
        warn!(target: "intake", "{lane}: held for {:.1} s: {reason}", time.as_secs_f64());
        let hold = Hold { until_ms, reason, probe: false, status: Some(429), bucket: Some(bucket) };
        let shared = self.clone();
        let held = tokio::task::spawn_blocking(move || shared.slot.with(|store| store.limit(&lane, &hold))).await;
        if let Ok(Err(error)) = held {
            // Then replay meets the limit itself, with one request.
            debug!(target: "intake", "cannot record a rate limit: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Effect, EntityKey, EntityKind};

    #[test]
    fn only_writes_that_overtake_nothing_are_sent() {
        let touch = [Touch { key: EntityKey::new(EntityKind::Trace, "a"), effect: Effect::Create }];
        let bucket = Bucket::ALL[0];
        let limited = std::iter::once(bucket).collect();
        for (name, ahead, touches, may) in [
            ("nothing is queued", Ahead::default(), &touch[..], true),
            ("nothing is queued, and it names no entity", Ahead::default(), &[][..], true),
            ("others are queued", Ahead { messages: 3, ..Ahead::default() }, &touch[..], true),
            (
                "others are queued in a lane that is held",
                Ahead { messages: 3, held: true, ..Ahead::default() },
                &touch[..],
                true,
            ),
            ("others are queued, and it names no entity", Ahead { messages: 3, ..Ahead::default() }, &[][..], false),
            (
                "writes about its entity are queued",
                Ahead { messages: 3, conflicting: true, ..Ahead::default() },
                &touch[..],
                false,
            ),
            ("its create was refused", Ahead { conflicting: true, ..Ahead::default() }, &touch[..], false),
            ("its bucket is limited", Ahead { messages: 3, limited, ..Ahead::default() }, &touch[..], false),
        ] {
            assert_eq!(why_not_sent(ahead, touches, bucket).is_none(), may, "{name}");
        }
    }
}
