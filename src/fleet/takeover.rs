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
/// How long a store's lease outlives its renewal for those who send under it: a renewal of that lease is allowed only
/// this much earlier than [`SEND_WITHIN`].
pub const LEASE_SPAN: Duration = Duration::from_secs(20);
/// How often an owner renews its head.
pub const RENEW_EVERY: Duration = Duration::from_secs(20);

/// How much silence counts between two requests of an observer at most.
pub const GAP_MAX: Duration = Duration::from_secs(30);
/// How long a head has to be unchanged at most, whatever it says: otherwise a stranger could keep a stream for good.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

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

    /// Records that the head was lost: nothing may be sent any more.
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
