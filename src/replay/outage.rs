//! Remains of an outage: waits for a server that is back.
//!
//! A request that gets no answer while pings still pass may hold its lane, and defer its message, for seconds to
//! minutes. If the server is then found unavailable, these were the beginning of the outage. Once it has ended there is
//! nothing to wait for: the holds end, and so do the deferrals of messages that no failure counts against. The lane
//! stays half-open: one message is sent first.
//!
//! What the server asked for stays: rate limits, refused keys, its own errors and what it deferred, and messages that
//! back off by their count of failures. So does everything after a flap ([`ConnectionMonitor::outages_ended`]): a request may have caused
//! it.
//!
//! [`ConnectionMonitor::outages_ended`]: crate::monitor::ConnectionMonitor::outages_ended

use tracing::debug;

use super::context::Replayer;
use super::lane_pages::lane_pages;
use super::lease::LeaseKeeper;
use crate::store::{LaneWork, StoreError, WaitEnd, now_ms};

/// Lanes whose waits one commit ends: some thousand messages of each are looked at.
const LANES_PER_COMMIT: usize = 64;

/// Returns which wait of a lane may be left of an outage, if one keeps it waiting.
pub(super) fn delays(work: &LaneWork, now_ms: i64) -> Option<WaitEnd> {
    if work.due_at_ms <= now_ms {
        return None;
    }
    match &work.hold {
        Some(hold) if hold.until_ms > now_ms => hold.is_unanswered().then(|| WaitEnd::Outage(Some(hold.clone()))),
        // What waits for an answer in flight, for a create or for a rate limit is not deferred.
        _ if work.due_at_ms == i64::MAX || !work.limits.is_empty() => None,
        _ => Some(WaitEnd::Outage(None)),
    }
}

impl Replayer<'_> {
    /// Ends the waits of lanes that an outage left behind, once after each. A shutdown interrupts it, and the next call
    /// goes on.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another process took over, and what else keeps the store from being used.
    pub(super) fn end_outage_waits(&self, keeper: &LeaseKeeper<'_>) -> Result<(), StoreError> {
        let outages = self.connection.outages_ended();
        if !self.state.is_outage_ended(outages) {
            return Ok(());
        }
        let now = now_ms();
        for page in lane_pages(self.store, &self.settings.filter, now) {
            let waits: Vec<_> = page?.iter().filter_map(|work| Some((work.id, delays(work, now)?))).collect();
            debug!(target: "replay_manager", "the waits of {} lanes end with the outage", waits.len());
            self.shutdown.beat();
            keeper.renew_if_due()?;
            for some in waits.chunks(LANES_PER_COMMIT) {
                self.shutdown.beat();
                keeper.renew_if_due()?;
                if self.shutdown.is_requested() {
                    return Ok(());
                }
                self.store.make_due(&keeper.lease, some, now)?;
            }
        }
        self.state.outages_noted(outages);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Bucket, Lane};
    use crate::store::{Hold, LaneId};

    #[test]
    fn only_waits_for_an_absent_server_end_with_its_outage() {
        let hold = |until_ms, status, bucket| Hold { until_ms, reason: String::new(), probe: true, status, bucket };
        let work = |due_at_ms, hold: Option<Hold>, limits: Vec<Hold>| LaneWork {
            id: LaneId(1),
            lane: Lane::default(),
            failed: 1,
            due_at_ms,
            hold,
            limits,
            waits_for: None,
            body_bytes: 0,
        };
        let limit = || vec![hold(90, Some(429), Some(Bucket::ALL[0]))];
        for status in [None, Some(502), Some(504), Some(522)] {
            let held = hold(90, status, None);
            assert_eq!(
                delays(&work(90, Some(held.clone()), limit()), 50),
                Some(WaitEnd::Outage(Some(held))),
                "{status:?}"
            );
        }
        for status in [200, 302, 401, 403, 429, 500, 503] {
            let held = Some(hold(90, Some(status), None));
            assert_eq!(delays(&work(90, held, Vec::new()), 50), None, "held for {status}");
        }
        let limited = Hold { probe: false, ..hold(90, None, None) };
        assert_eq!(delays(&work(90, Some(limited), Vec::new()), 50), None, "an earlier version's rate limit");
        assert_eq!(delays(&work(90, Some(Hold::after_panic(90)), Vec::new()), 50), None, "its replay panicked");
        assert_eq!(delays(&work(50, None, Vec::new()), 50), None, "it is due");
        assert_eq!(delays(&work(90, None, Vec::new()), 50), Some(WaitEnd::Outage(None)));
        let over = Some(hold(40, Some(401), None));
        assert_eq!(delays(&work(90, over, Vec::new()), 50), Some(WaitEnd::Outage(None)), "its hold is over");
        assert_eq!(delays(&work(90, None, limit()), 50), None, "a rate limit");
        assert_eq!(delays(&work(i64::MAX, None, Vec::new()), 50), None, "it waits for what is in flight");
    }
}
