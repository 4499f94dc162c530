//! How requests of one lane leave, and how their outcomes reach the store: under the lease, counted.

use std::time::Duration;

use tracing::{debug, info};

use super::context::Replayer;
use super::lease::LeaseKeeper;
use crate::delivery::lane_health::{Decision, Event, LaneTurn};
use crate::message::{MessageId, MessageType, Request};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::fallback::fallback;
use crate::protocol::recognise::{Endpoint, Recognised};
use crate::store::{Hold, LaneWork, Outcome, StoreError};

/// Contents larger than this are sent only as they are: not rewritten for an older server, not divided.
pub(super) const CONTENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Sends for one lane.
pub(super) struct Sender<'a> {
    pub replay: &'a Replayer<'a>,
    pub keeper: &'a LeaseKeeper<'a>,
    pub work: LaneWork,
}

impl Sender<'_> {
    /// Sends a request or, if the server is too old for it, an equivalent one.
    pub(super) fn send(
        &self,
        message_type: MessageType,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, SendFailure> {
        let replay = self.replay;
        replay.metrics.replay_requests.add(1);
        let endpoint = Endpoint::Write(message_type);
        let result = replay.upstream.send_within(&self.work.lane, endpoint, request, timeout);
        // A router that doesn't know the path is not a server that is too old.
        let Some(answer) = result.as_ref().ok().filter(|answer| answer.recognised == Recognised::Refused) else {
            return result;
        };
        let Some(other) = fallback(message_type, request, answer.status, CONTENT_BYTES_MAX) else { return result };
        if !self.keeper.may_send() {
            return result;
        }
        debug!(target: "replay_manager", "the Opik server takes assertion results as feedback scores only");
        replay.metrics.replay_requests.add(1);
        replay.upstream.send_within(&self.work.lane, endpoint, &other, timeout)
    }

    /// Takes what happened to the lane, and returns what to do.
    pub(super) fn on(&self, turn: &mut LaneTurn, event: Event) -> Decision {
        self.replay.state.on(self.work.id, turn, event)
    }

    /// Persists a hold of the lane or of one bucket, or removes the lane's.
    pub(super) fn hold(&self, hold: Option<&Hold>) -> Result<(), StoreError> {
        self.replay.store.hold(&self.keeper.lease, self.work.id, hold)
    }

    /// Settles and counts. If the store cannot take the outcomes, the server's decisions are remembered, so that these
    /// messages are not sent again.
    pub(super) fn settle(&self, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let replay = self.replay;
        if let Err(error) = replay.store.settle(&self.keeper.lease, outcomes) {
            replay.state.keep_unsettled(outcomes);
            return Err(error);
        }
        self.settled(outcomes)
    }

    /// Counts what is settled, and releases held messages if the probe for them was delivered.
    pub(super) fn settled(&self, outcomes: &[(MessageId, Outcome)]) -> Result<(), StoreError> {
        let replay = self.replay;
        let is_held_accepted = replay.state.settled(self.work.id, outcomes);
        self.count(outcomes);
        if is_held_accepted {
            let released = replay.store.release_held(&self.keeper.lease, self.work.id)?;
            info!(
                target: "replay_manager",
                lane = %self.work.lane, released,
                "the Opik server accepts ids again that it had refused for their time: held messages are delivered"
            );
        }
        Ok(())
    }

    fn count(&self, outcomes: &[(MessageId, Outcome)]) {
        let of = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| wanted(outcome)).count() as u64;
        self.replay.metrics.messages_delivered.add(of(|outcome| matches!(outcome, Outcome::Delivered)));
        let rejected: usize = outcomes.iter().map(|(_, outcome)| outcome.rejected_messages()).sum();
        self.replay.metrics.messages_rejected.add(rejected as u64);
    }
}
