//! Takeover: when a stream may be taken, and until when its owner may send.
//!
//! No clocks of two machines are compared. A successor waits until it has seen the same version of a head for
//! [`TAKEOVER_AFTER`] on its own clock; an owner sends only while its last renewal *began* less than [`SEND_WITHIN`] ago
//! on its own clock. Both clocks must count the time in which the machine sleeps ([`crate::store::since_boot`]). So, as
//! long as the two clocks run at about the same speed, no request of the old owner begins after the takeover.
//!
//! ```text
//! owner      renewal begins ── the depot has it ─────── stops sending (60 s)
//! successor                      sees it at the latest when it changes ───────────── takes over (90 s of silence)
//! ```

use std::collections::HashMap;
use std::time::Duration;

use super::head::HeadState;
use super::names::StreamId;

/// How long a head must be unchanged before its stream may be taken.
pub const TAKEOVER_AFTER: Duration = Duration::from_secs(90);
/// How long before a takeover the owner stops sending: for clocks that differ in speed, and requests on their way.
pub const MARGIN: Duration = Duration::from_secs(30);
/// How long an owner may begin requests after the beginning of its last renewal, with the default time.
pub const SEND_WITHIN: Duration = TAKEOVER_AFTER.saturating_sub(MARGIN);
/// How long a store's lease outlives its renewal for its senders: a renewal of that lease is allowed only
/// this much earlier than [`SEND_WITHIN`].
pub const LEASE_SPAN: Duration = Duration::from_secs(20);
/// How often an owner renews its head.
pub const RENEW_EVERY: Duration = Duration::from_secs(20);

/// How much silence counts between two requests of an observer at most.
pub const GAP_MAX: Duration = Duration::from_secs(30);
/// How long a head has to be unchanged at most, whatever it says: otherwise a stranger could keep a stream for good.
pub const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// The right to send messages of a stream, as far as its owner knows.
///
/// All times are readings of one clock that counts suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    takeover_after: Duration,
    /// When the last successful renewal began.
    renewed: Option<Duration>,
}

impl Fence {
    /// Returns a closed fence: nothing may be sent before the first renewal.
    pub fn new(takeover_after: Duration) -> Self {
        Self { takeover_after, renewed: None }
    }

    /// Records a successful renewal, by the time at which it *began*: the depot may have had it since then.
    pub fn renewed(&mut self, began: Duration) {
        // Answers may arrive in another order than their requests began.
        self.renewed = self.renewed.max(Some(began));
    }

    /// Records that the head was lost: nothing may be sent from now on.
    pub fn lost(&mut self) {
        self.renewed = None;
    }

    /// Returns whether a request may begin now.
    pub fn may_send(&self, now: Duration) -> bool {
        self.is_younger_than(now, self.takeover_after.saturating_sub(MARGIN))
    }

    /// Returns whether a lease may be acquired or renewed now, under which requests begin for up to [`LEASE_SPAN`].
    pub fn may_lease(&self, now: Duration) -> bool {
        self.is_younger_than(now, self.takeover_after.saturating_sub(MARGIN).saturating_sub(LEASE_SPAN))
    }

    /// Returns how long from now requests may begin.
    pub fn left(&self, now: Duration) -> Duration {
        let Some(age) = self.renewed.and_then(|began| now.checked_sub(began)) else { return Duration::ZERO };
        self.takeover_after.saturating_sub(MARGIN).saturating_sub(age)
    }

    /// A clock that was set back proves nothing: then nothing may be sent.
    fn is_younger_than(&self, now: Duration, limit: Duration) -> bool {
        self.renewed.and_then(|began| now.checked_sub(began)).is_some_and(|age| age < limit)
    }
}

/// When a depot was asked: the head that it showed was the current one at some moment between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Before the request began.
    pub began: Duration,
    /// After its answer arrived.
    pub ended: Duration,
}

impl Asked {
    /// Returns a request that took no time.
    pub fn at(now: Duration) -> Self {
        Self { began: now, ended: now }
    }
}

/// Whether a stream may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Its owner has closed it.
    Closed,
    /// Its owner has been silent for long enough.
    Silent,
    /// Its owner may be alive; it has been silent for this long.
    NotYet(Duration),
}

impl Takeover {
    /// Returns whether it may be taken now.
    pub fn is_free(self) -> bool {
        !matches!(self, Self::NotYet(_))
    }
}

/// A head as a listing or a read shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSeen<'version> {
    /// The depot's version of it.
    pub version: &'version str,
    /// Its state.
    pub state: HeadState,
    /// [`super::head::Head::silence_ms`].
    pub silence_ms: u64,
}

/// Watches heads for silence.
#[derive(Clone, Debug)]
pub struct SilenceWatch {
    after: Duration,
    seen: HashMap<StreamId, Unchanged>,
}

#[derive(Clone, Debug)]
struct Unchanged {
    version: String,
    silence: Duration,
    /// When the last answer arrived.
    last: Duration,
}

impl SilenceWatch {
    /// Returns a watch that calls a stream silent after this time.
    pub fn new(after: Duration) -> Self {
        Self { after, seen: HashMap::new() }
    }

    /// Records what a depot showed, and returns whether the stream may be taken.
    ///
    /// Silence is counted between requests that showed the same version, at most [`GAP_MAX`] between two of them: so
    /// neither a step of the clock nor an observer that was suspended makes a living owner look silent. A clock that
    /// was set back starts the wait again. Ask at least every [`GAP_MAX`], and one request after the other.
    pub fn observe(&mut self, stream: StreamId, head: HeadSeen<'_>, asked: Asked) -> Takeover {
        let first = || Unchanged { version: head.version.to_owned(), silence: Duration::ZERO, last: asked.ended };
        let seen = self.seen.entry(stream).or_insert_with(first);
        match asked.began.checked_sub(seen.last) {
            Some(gap) if seen.version == head.version => seen.silence = seen.silence.saturating_add(gap.min(GAP_MAX)),
            Some(_) | None => *seen = first(),
        }
        seen.last = asked.ended;
        let needed = self.after.max(Duration::from_millis(head.silence_ms).min(SILENCE_MAX));
        match head.state {
            HeadState::Closed => Takeover::Closed,
            HeadState::Open | HeadState::Taken if seen.silence >= needed => Takeover::Silent,
            HeadState::Open | HeadState::Taken => Takeover::NotYet(seen.silence),
        }
    }

    /// Forgets all streams but these, so that memory follows what exists.
    pub fn retain(&mut self, exists: impl Fn(&StreamId) -> bool) {
        self.seen.retain(|stream, _| exists(stream));
    }

    /// Forgets a stream: one that was just taken or released.
    pub fn forget(&mut self, stream: &StreamId) {
        self.seen.remove(stream);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::samples::stream;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn head(version: &str) -> HeadSeen<'_> {
        HeadSeen { version, state: HeadState::Open, silence_ms: 0 }
    }

    fn observe(watch: &mut SilenceWatch, version: &str, now: u64) -> Takeover {
        watch.observe(stream(1), head(version), Asked::at(seconds(now)))
    }

    #[test]
    fn a_stream_is_free_after_ninety_seconds_without_a_change() {
        let mut watch = SilenceWatch::new(TAKEOVER_AFTER);
        for now in (1000..1090).step_by(10) {
            assert!(
                !observe(&mut watch, "a", now).is_free(),
                "a living owner's stream is taken after {} s",
                now - 1000
            );
        }
        assert_eq!(observe(&mut watch, "a", 1090), Takeover::Silent);
        assert_eq!(observe(&mut watch, "b", 1100), Takeover::NotYet(seconds(0)), "a renewal did not count");
        watch.forget(&stream(1));
        assert!(!observe(&mut watch, "b", 5000).is_free());
        watch.retain(|_| false);
        assert!(watch.seen.is_empty());
    }

    #[test]
    fn a_closed_stream_is_free_at_once_and_others_are_not_confused_with_it() {
        let mut watch = SilenceWatch::new(TAKEOVER_AFTER);
        let closed = HeadSeen { state: HeadState::Closed, ..head("a") };
        assert_eq!(watch.observe(stream(1), closed, Asked::at(seconds(5))), Takeover::Closed);
        assert!(!watch.observe(stream(2), head("a"), Asked::at(seconds(5))).is_free());
    }

    #[test]
    fn the_owners_own_time_is_respected_within_reason() {
        let mut watch = SilenceWatch::new(seconds(30));
        let patient = HeadSeen { silence_ms: 120_000, ..head("a") };
        let free_after = |watch: &mut SilenceWatch, id, head: HeadSeen<'_>| {
            (0..1000).map(|n| n * 10).find(|now| watch.observe(stream(id), head, Asked::at(seconds(*now))).is_free())
        };
        assert_eq!(free_after(&mut watch, 1, patient), Some(120), "the owner still sends");
        assert_eq!(free_after(&mut watch, 2, head("a")), Some(30));
        let forever = HeadSeen { silence_ms: u64::MAX, ..head("a") };
        assert_eq!(free_after(&mut watch, 3, forever), Some(3600), "a stranger keeps a stream for good");
    }

    #[test]
    fn neither_a_clock_step_nor_a_suspended_observer_makes_a_stream_free() {
        let mut watch = SilenceWatch::new(TAKEOVER_AFTER);
        observe(&mut watch, "a", 1000);
        assert!(!observe(&mut watch, "a", 100_000).is_free(), "the observer slept, the owner may be alive");
        assert_eq!(observe(&mut watch, "a", 50_000), Takeover::NotYet(seconds(0)), "a clock that was set back");
        // A slow request: the head was current somewhere between its begin and its end.
        let slow = Asked { began: seconds(50_001), ended: seconds(50_100) };
        assert_eq!(watch.observe(stream(1), head("a"), slow), Takeover::NotYet(seconds(1)));
    }

    #[test]
    fn an_owner_sends_for_a_minute_after_the_beginning_of_its_last_renewal() {
        let mut fence = Fence::new(TAKEOVER_AFTER);
        assert!(!fence.may_send(seconds(100)), "nothing was renewed yet");
        fence.renewed(seconds(100));
        for (now, may_send, may_lease) in [
            (100, true, true),
            (139, true, true),
            (140, true, false),
            (159, true, false),
            (160, false, false),
            (10_000, false, false),
            // A clock that was set back, or a machine that was restored from a snapshot.
            (99, false, false),
        ] {
            assert_eq!(
                (fence.may_send(seconds(now)), fence.may_lease(seconds(now))),
                (may_send, may_lease),
                "at {now}"
            );
        }
        assert_eq!((fence.left(seconds(130)), fence.left(seconds(400))), (seconds(30), seconds(0)));
        fence.renewed(seconds(90));
        assert!(fence.may_send(seconds(155)), "an answer that came late took back a newer renewal");
        fence.lost();
        assert!(!fence.may_send(seconds(110)) && !fence.may_lease(seconds(110)));
    }

    proptest! {
        /// The clocks of owner and observer have nothing in common but their speed. The owner may sleep: its clock counts
        /// that. The depot has the renewal at any moment of its request.
        #[test]
        fn no_request_begins_after_a_takeover(
            renewals in prop::collection::vec((1_u64..200, 0_u64..15), 1..12),
            first_look in 0_u64..300,
            looks in prop::collection::vec(1_u64..60, 200..201),
            offset in 0_u64..1_000_000,
        ) {
            let mut fence = Fence::new(TAKEOVER_AFTER);
            // Renewals in real time: when they began and when the depot had them.
            let (mut now, mut written, mut last_sent) = (0, Vec::new(), 0);
            for (pause, takes) in renewals {
                now += pause;
                let began = now;
                now += takes;
                written.push(now);
                fence.renewed(seconds(began));
                last_sent = began + fence.left(seconds(began)).as_secs();
            }
            let mut watch = SilenceWatch::new(TAKEOVER_AFTER);
            let mut look = first_look;
            let last_written = *written.last().expect("one at least");
            for pause in looks {
                let version = written.iter().filter(|at| **at <= look).count().to_string();
                let asked = Asked::at(seconds(offset + look));
                if watch.observe(stream(1), head(&version), asked).is_free() && look >= last_written {
                    prop_assert!(look > last_sent, "taken over at {look}, the owner sends until {last_sent}");
                    return Ok(());
                }
                look += pause;
            }
        }
    }
}
