//! The heads that this replayer holds: taken, renewed, released.
//!
//! A head is the only object of a stream that changes. The process that wrote its present version owns the stream, and nothing is
//! sent unless *every* head that is held was renewed a short time ago ([`Holdings::may_send`]): lanes mix the messages
//! of many streams, so one that is in doubt stops all. That takes seconds, because a head that is lost is dropped with its
//! messages.
//!
//! Times are those of [`since_boot`], which counts the time in which the machine slept, and begin *before* a renewal is
//! sent: the successor counts from the moment at which it saw the renewed version, which is later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::objects::name_of;
use crate::depot::{Depot, DepotError, Version};
use crate::fleet::head::{Head, HeadOwner, HeadState, MissingKey};
use crate::fleet::names::{ObjectName, StreamId};
use crate::fleet::parallel::in_parallel;
use crate::store::{StoreError, now_ms, since_boot};

/// Heads that are renewed at a time.
const RENEWALS_AT_ONCE: usize = 8;
/// How long after a renewal that failed the next one begins.
const RENEWAL_RETRY: Duration = Duration::from_secs(1);
/// Replay sends under a lease of the scratch store that was renewed this long ago at most (`replay::lease`).
const LEASE_USE_MAX: Duration = Duration::from_secs(20);
/// How long before a successor may begin the last request has begun.
const MARGIN: Duration = Duration::from_secs(30);

/// How long heads live, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadTiming {
    /// How long a head has to be silent before another replayer takes it: `fleet_takeover_after`.
    pub takeover_after: Duration,
}

impl HeadTiming {
    /// Returns how often a head is renewed.
    pub(crate) fn renew_interval(self) -> Duration {
        self.takeover_after * 2 / 9
    }

    /// Returns how long after the beginning of a renewal the store's lease may still be renewed.
    ///
    /// A request begins at most [`LEASE_USE_MAX`] later, and the successor at least [`MARGIN`] after that. A time to take
    /// over that is shorter than these two leaves a share of it, for tests.
    fn fence(self) -> Duration {
        let left = self.takeover_after.checked_sub(LEASE_USE_MAX + MARGIN);
        left.filter(|left| *left >= self.renew_interval() * 2).unwrap_or(self.takeover_after * 4 / 9)
    }
}

/// One head that this replayer holds.
#[derive(Clone, Debug)]
struct HeldHead {
    head: Head,
    version: Version,
    /// When the renewal began that made this version.
    renewed: Duration,
    /// When it was last tried to renew it.
    tried: Duration,
    is_lost: bool,
    /// Whether it is about to be released, for which nothing may be in flight.
    is_leaving: bool,
}

/// The heads that this replayer holds. One mutex, which is never held over a request.
pub(crate) struct Holdings {
    depot: Arc<dyn Depot>,
    owner: HeadOwner,
    timing: HeadTiming,
    held: Mutex<BTreeMap<StreamId, HeldHead>>,
    /// Held while heads are renewed: a head must not be renewed while it is released.
    renewing: Mutex<()>,
}

impl Holdings {
    pub(crate) fn new(depot: Arc<dyn Depot>, owner: HeadOwner, timing: HeadTiming) -> Self {
        Self { depot, owner, timing, held: Mutex::default(), renewing: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, HeldHead>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stream whose head was seen in this version; returns the head as it is now, or `None` if another process
    /// changed it since.
    ///
    /// # Errors
    ///
    /// If the depot can't be used. After [`DepotError::UnknownOutcome`] the stream may be ours and is not held: it
    /// becomes silent and is taken again.
    pub(crate) fn take(&self, stream: StreamId, found: Option<(&Head, &Version)>) -> Result<Option<Head>, DepotError> {
        let renewed = since_boot();
        let head = self.written(match found {
            Some((head, _)) => head.taken_by(self.owner.clone()),
            None => self.adopted(),
        });
        let expected = found.map(|(_, version)| version);
        let Some(version) = self.write(stream, expected, &head)? else { return Ok(None) };
        let held = HeldHead { head: head.clone(), version, renewed, tried: renewed, is_lost: false, is_leaving: false };
        self.lock().insert(stream, held);
        Ok(Some(head))
    }

    /// Returns the head of a stream that has none: its agent was killed, or its stream deleted, while it shipped.
    fn adopted(&self) -> Head {
        Head::first(HeadState::Taken, self.owner.clone())
    }

    /// Returns a head as it is written now.
    fn written(&self, head: Head) -> Head {
        Head {
            renewed: head.renewed.saturating_add(1),
            renewed_at_ms: u64::try_from(now_ms()).unwrap_or(0),
            silence_ms: u64::try_from(self.timing.takeover_after.as_millis()).unwrap_or(u64::MAX),
            ..head
        }
    }

    /// Renews the heads for which it is time.
    pub(crate) fn renew_due(&self) {
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = since_boot();
        let interval = self.timing.renew_interval();
        let is_due = |held: &HeldHead| {
            !held.is_lost
                && now.saturating_sub(held.renewed) >= interval
                && now.saturating_sub(held.tried) >= RENEWAL_RETRY.min(interval)
        };
        let due: Vec<(StreamId, HeldHead)> = {
            let mut held = self.lock();
            let due = held.iter_mut().filter(|(_, held)| is_due(held));
            due.map(|(stream, held)| {
                held.tried = now;
                (*stream, held.clone())
            })
            .collect()
        };
        in_parallel(&due, RENEWALS_AT_ONCE, |(stream, held)| self.renew(*stream, held));
    }

    fn renew(&self, stream: StreamId, held: &HeldHead) {
        let renewed = since_boot();
        let head = self.written(held.head.clone());
        let written = self.write(stream, Some(&held.version), &head);
        let mut all = self.lock();
        // Released or finished meanwhile: there is nothing to renew.
        let Some(now) = all.get_mut(&stream).filter(|now| now.version == held.version) else { return };
        match written {
            Ok(Some(version)) => {
                let is_leaving = now.is_leaving;
                *now = HeldHead { head, version, renewed, tried: renewed, is_lost: false, is_leaving };
            }
            Ok(None) => {
                now.is_lost = true;
                warn!(target: "fleet", %stream, "another process took this stream over; its messages are dropped here");
            }
            Err(error) => warn!(target: "fleet", %stream, "cannot renew the head of a stream yet: {error}"),
        }
    }

    /// Writes a head over this version; `None` if another process was faster.
    fn write(&self, stream: StreamId, expected: Option<&Version>, head: &Head) -> Result<Option<Version>, DepotError> {
        let name = name_of(&ObjectName::Head(stream));
        let bytes = head.encode();
        match self.depot.swap(&name, expected, &bytes) {
            Ok(version) => Ok(Some(version)),
            Err(DepotError::Lost { .. } | DepotError::UnknownOutcome { .. }) => {
                // The engine may have repeated a request whose answer was lost: then the version is ours.
                let found = self.depot.get(&name)?;
                Ok(found.filter(|(found, _)| *found == bytes).map(|(_, version)| version))
            }
            Err(error) => Err(error),
        }
    }

    /// Checks that every head that is held was renewed a short time ago.
    ///
    /// # Errors
    ///
    /// [`StoreError::DepotAway`] if not, or if one is about to be released: nothing is sent until then, or until its
    /// messages are dropped.
    pub(crate) fn may_send(&self) -> Result<(), StoreError> {
        let (now, fence) = (since_boot(), self.timing.fence());
        let held = self.lock();
        for (stream, held) in held.iter() {
            if held.is_lost {
                return Err(StoreError::DepotAway { reason: format!("stream {stream} was taken by another process") });
            }
            if held.is_leaving {
                return Err(StoreError::DepotAway { reason: format!("stream {stream} is being released") });
            }
            if now.saturating_sub(held.renewed) >= fence {
                let reason = format!("the head of stream {stream} was not renewed in time");
                return Err(StoreError::DepotAway { reason });
            }
        }
        Ok(())
    }

    /// Returns the epoch in which this stream is held, if it is and was not lost.
    pub(crate) fn epoch(&self, stream: StreamId) -> Option<u32> {
        self.lock().get(&stream).filter(|held| !held.is_lost).map(|held| held.head.epoch)
    }

    /// Returns how many streams are held.
    pub(crate) fn count(&self) -> u64 {
        self.lock().len() as u64
    }

    /// Lets nothing be sent until this stream is released.
    pub(crate) fn leave(&self, stream: StreamId) {
        if let Some(held) = self.lock().get_mut(&stream) {
            held.is_leaving = true;
        }
    }

    /// Returns the streams that are about to be released.
    pub(crate) fn leaving(&self) -> Vec<StreamId> {
        self.lock().iter().filter(|(_, held)| held.is_leaving && !held.is_lost).map(|(stream, _)| *stream).collect()
    }

    /// Returns the streams that were lost and not forgotten yet.
    pub(crate) fn lost(&self) -> Vec<StreamId> {
        self.lock().iter().filter(|(_, held)| held.is_lost).map(|(stream, _)| *stream).collect()
    }

    /// Forgets a stream: it was lost and its messages are dropped, or it is finished.
    pub(crate) fn forget(&self, stream: StreamId) {
        self.lock().remove(&stream);
    }

    /// Releases a stream, so that another replayer may take it at once. `waiting` messages of it are not settled.
    ///
    /// # Errors
    ///
    /// If the depot can't be used: it becomes silent and is taken later.
    pub(crate) fn give_back(&self, stream: StreamId, waiting: u64) -> Result<(), DepotError> {
        self.release(stream, waiting, None)
    }

    /// The same, and says in the head which keys its messages wait for.
    ///
    /// # Errors
    ///
    /// As [`Holdings::give_back`].
    pub(crate) fn release(
        &self,
        stream: StreamId,
        waiting: u64,
        missing: Option<Vec<MissingKey>>,
    ) -> Result<(), DepotError> {
        let _renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = self.lock().remove(&stream).filter(|held| !held.is_lost) else { return Ok(()) };
        let missing_keys = missing.unwrap_or_else(|| held.head.missing_keys.clone());
        let head = self.written(Head { state: HeadState::Closed, waiting, missing_keys, ..held.head });
        if self.write(stream, Some(&held.version), &head)?.is_none() {
            info!(target: "fleet", %stream, "another process took this stream over before it was released");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::{ModelDepot, ModelFault, Verb};

    #[test]
    fn no_request_begins_within_thirty_seconds_of_the_earliest_takeover() {
        for seconds in [90, 120, 600] {
            let timing = HeadTiming { takeover_after: Duration::from_secs(seconds) };
            let last_request = timing.fence() + LEASE_USE_MAX;
            assert!(last_request + MARGIN <= timing.takeover_after, "a request would begin beside the successor's");
            assert!(timing.renew_interval() * 2 <= timing.fence(), "one renewal that fails would stop all");
        }
    }
    fn holdings(depot: &Arc<ModelDepot>, nonce: &str, seconds: u64) -> Holdings {
        let owner = HeadOwner { nonce: nonce.to_owned(), ..HeadOwner::default() };
        let timing = HeadTiming { takeover_after: Duration::from_secs(seconds) };
        Holdings::new(depot.clone(), owner, timing)
    }

    fn head_of(depot: &ModelDepot, stream: StreamId) -> (Head, Version) {
        let (bytes, version) =
            depot.get(&name_of(&ObjectName::Head(stream))).expect("it answers").expect("it is there");
        (Head::decode(&bytes).expect("it is a head"), version)
    }

    #[test]
    fn a_stream_is_taken_by_one_of_two_and_nothing_is_sent_once_it_is_lost() {
        let depot = Arc::new(ModelDepot::new());
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let (one, other) = (holdings(&depot, "one", 90), holdings(&depot, "other", 90));
        one.take(stream, None).expect("it answers").expect("nobody else takes it");
        let (head, version) = head_of(&depot, stream);
        assert!(one.may_send().is_ok());
        let taken = other.take(stream, Some((&head, &version))).expect("it answers").expect("it is silent");
        assert_eq!(taken.epoch, head.epoch + 1, "marks of two owners would have one name");
        assert!(one.take(stream, Some((&head, &version))).expect("it answers").is_none(), "two owners");
        // The next renewal finds out.
        let held = one.lock().get(&stream).cloned().expect("it is held");
        one.renew(stream, &held);
        assert_eq!(one.lost(), [stream]);
        assert!(one.may_send().is_err(), "it sends beside the new owner");
        one.forget(stream);
        assert!(one.may_send().is_ok(), "the other streams wait for nothing");
    }

    #[test]
    fn a_swap_whose_answer_is_lost_is_recognised_as_ours() {
        let depot = Arc::new(ModelDepot::new());
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let one = holdings(&depot, "one", 90);
        depot.fail_next(Verb::Swap, ModelFault::DoneUnanswered);
        assert!(one.take(stream, None).expect("it is read").is_some(), "the stream would have to become silent first");
        one.give_back(stream, 3).expect("it answers");
        let (head, _) = head_of(&depot, stream);
        assert_eq!((head.state, head.waiting), (HeadState::Closed, 3));
    }

    #[test]
    fn nothing_is_sent_while_the_depot_is_away_for_too_long() {
        let depot = Arc::new(ModelDepot::new());
        let stream = StreamId::new(uuid::Uuid::now_v7());
        let one = holdings(&depot, "one", 90);
        one.take(stream, None).expect("it answers").expect("nobody else takes it");
        depot.set(|faults| faults.is_away = true);
        if let Some(held) = one.lock().get_mut(&stream) {
            held.renewed = since_boot().saturating_sub(Duration::from_secs(40));
            held.tried = held.renewed;
        }
        one.renew_due();
        assert!(one.may_send().is_err(), "a successor may have taken the stream");
        depot.set(|faults| faults.is_away = false);
        if let Some(held) = one.lock().get_mut(&stream) {
            held.tried = Duration::ZERO;
        }
        one.renew_due();
        assert!(one.may_send().is_ok(), "a short absence of the depot stops delivery for good");
    }
}
