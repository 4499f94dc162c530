//! Lane health: what a lane may do next, as one pure state machine.
//!
//! A lane is protected by a circuit breaker. [`LaneHealth`] is what a replayer remembers of one lane, a [`LaneTurn`] is
//! one worker's turn with it, and [`LaneHealth::on`] takes what happened and returns what to do. No clock, no lock and
//! no store: jitter and readings of the clock are arguments, waits are durations.
//!
//! ```text
//!                 failures, a refused key
//!      Closed ──────────────────────────────▶ Open ◀──────────┐
//!        ▲                                     │              │
//!        │ a message is delivered              │ hold ends    │ the probe fails
//!        └───────────────── HalfOpen ◀─────────┘              │
//!                              └──────────────────────────────┘
//! ```
//!
//! - **Closed**: batches as large as the pace allows, or as the recovery window allows after an outage.
//! - **Open**: nothing is sent until the hold ends. Only this state is persisted (the lane's hold in the store), so
//!   that other processes see it and a restart keeps it.
//! - **HalfOpen**: the hold has ended and no message was delivered since. One message is sent as a probe.
//!
//! # Several workers
//!
//! While a closed lane delivers, up to [`Concurrency::batches`] workers have batches of it in flight. The first of them
//! that meets backpressure (a failure, a rate limit, a refused key, no connection) becomes the *sole* one: it divides
//! and blames as if it had been alone. The others return what they have not sent, and what fails of theirs meanwhile,
//! to the queue, and end their turns. New ones join after a batch without backpressure.
//!
//! # Invariants
//!
//! 1. *No lane starves.* A turn may always claim at least one message, every wait has an upper bound unless the server
//!    asked for a longer one, and a message that fails as a probe is deferred behind the next ones, so that poison
//!    messages do not keep their lane open. A bound remains: poison messages whose probes, with the holds between them,
//!    together take longer than [`DEFER_MAX`] are due again before the message behind them was a probe.
//! 2. *A failing server is not hammered.* A batch ends at [`TRANSIENT_FAILURES_MAX`] consecutive transient failures or
//!    at [`TIMEOUTS_MAX`] timeouts, a half-open lane sends one message, and without a delivery the waits double up to
//!    the retry interval.
//! 3. *No message is rejected for a fault that is not its own.* A failure counts only if there is evidence that other
//!    messages pass ([`blame`]), and a message is rejected only if the server answered its last attempt.
//!
//! Messages are remembered by their ids, so a `LaneHealth` is valid for one store only. A new process starts with an
//! empty one and learns again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::backoff;
use super::blame::{self, Evidence, FAILING_MAX};
use super::concurrency::{BatchTime, Concurrency};
use super::id_window::{IdWindow, Outside};
use super::pacing::{BatchEnd, Pace};
use crate::message::MessageId;

/// Consecutive transient failures that open the circuit breaker: enough to halve a full batch down to one message, few
/// enough not to hammer a failing server.
pub(crate) const TRANSIENT_FAILURES_MAX: u32 = 12;
/// Consecutive timeouts that open it if nothing of the batch passed: each may take the whole `forward_timeout`.
pub(crate) const TIMEOUTS_MAX: u32 = 3;
/// A transient failure that took this long is expensive to repeat.
const SLOW_FAILURE: Duration = Duration::from_secs(2);
/// The most messages in a batch after a slow failure, and in one beside a request that still waits for its answer. The
/// messages of a request that failed slowly are divided into as many requests.
const SLOW_BATCH_MAX: usize = 8;
/// The longest time for which a failed probe is deferred: the time that a recovered server may still wait for it.
const DEFER_MAX: Duration = backoff::WAIT_MAX;
/// The most messages remembered per lane for a deferral, and for a timeout; beyond it each failure looks like the
/// first.
const REMEMBERED_MAX: usize = 10_000;
/// How long a refusal of ids for their time is applied to other messages: long enough that a fast replay asks a
/// handful of times, too short for an operator to change the server and still get the cached answer.
const REFUSED_IDS_LIFE: Duration = Duration::from_secs(2);

/// The state of a lane's circuit breaker, as one worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circuit {
    /// The lane is replayed.
    Closed,
    /// The hold has ended, and no message was delivered since.
    HalfOpen {
        /// Whether one message is sent before the rest: always, except for a hold that an earlier version stored for a
        /// rate limit.
        is_probe: bool,
    },
    /// Nothing more is sent before the hold ends.
    Open,
}

/// The configured limits of the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BreakerSettings {
    /// The longest time for which a lane is held, unless the server asked for a longer one.
    pub retry_interval: Duration,
    /// Counted attempts after which a message is rejected.
    pub attempts_max: u32,
}

/// One worker's turn with a lane, and what its current batch has met so far.
#[derive(Clone, Debug)]
pub(crate) struct LaneTurn {
    number: u64,
    settings: BreakerSettings,
    circuit: Circuit,
    /// Whether it began because the lane's other workers have been waiting long for an answer. Such a turn is neither
    /// counted nor ended with theirs.
    is_extra: bool,
    /// The limit under which the current batch was claimed.
    claimed_under: Option<usize>,
    /// [`LaneHealth::strains`] when the turn began, or when it had dealt with the last one.
    strains: u64,
    /// Whether messages that another process deferred were already made due.
    has_released: bool,
    pace: Pace,
    /// Requests of the batch that passed.
    passes: usize,
    /// Transient failures since one passed.
    failures: u32,
    /// Those of them that got no answer.
    timeouts: u32,
    /// Whether any request of the batch failed transiently.
    has_failed: bool,
    /// Whether a message of the batch was deferred.
    has_deferred: bool,
    /// Whether answers to it took so long that the server must be loaded.
    has_slowed: bool,
}

impl LaneTurn {
    /// Returns the pace in force.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Returns the state of the circuit breaker.
    #[cfg(test)]
    pub(crate) fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// Returns how many requests of the current batch passed.
    pub(crate) fn passes(&self) -> usize {
        self.passes
    }

    /// Starts the next batch, claimed under this limit of messages.
    pub(crate) fn begin_batch(&mut self, limit: usize) {
        self.claimed_under = Some(limit);
        (self.passes, self.failures, self.timeouts) = (0, 0, 0);
        (self.has_failed, self.has_deferred, self.has_slowed) = (false, false, false);
    }
}

/// An event in a worker's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A request passed.
    Passed,
    /// A request failed transiently, and the server is available.
    TransientFailure(TransientFailure),
    /// The server refuses the lane as a whole: its key, its plan, its address.
    LaneRefused {
        /// How long the server asked to wait.
        asked: Option<Duration>,
    },
    /// The server limits the rate of one bucket of the lane.
    RateLimited {
        /// How long the server asked to wait.
        asked: Option<Duration>,
    },
    /// All of the batch was sent, and this message had failed transiently in a request of its own.
    FailedAlone(FailedAlone),
    /// The outcomes of the batch are durable.
    BatchSettled {
        /// Whether a message was delivered.
        delivered: bool,
        /// Whether the batch ended early: the lane is held, the server is unavailable, or shutdown was requested.
        halted: bool,
        /// Whether the server limited the rate.
        limited: bool,
    },
}

/// A transient failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransientFailure {
    /// How long the server asked to wait.
    pub asked: Option<Duration>,
    /// Whether the server gave no answer of its own: then the message is never rejected for it.
    pub is_unanswered: bool,
    /// How long the request took.
    pub took: Duration,
}

/// A message that failed in a request of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailedAlone {
    /// The message.
    pub message: MessageId,
    /// Attempts that counted against it before.
    pub attempts: u32,
    /// [`LaneTurn::passes`] when it first failed, alone or with others in one request.
    pub passes: usize,
    /// Its failure.
    pub failure: TransientFailure,
    /// Whether the batch ended early.
    pub halted: bool,
}

/// The reaction to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing else: send the next request.
    Continue,
    /// Send what failed again, halved this many times.
    Divide {
        /// 1: in two, 3: in eight.
        halvings: u32,
    },
    /// Hold the lane and send nothing more of the batch.
    Open {
        /// For how long.
        wait: Duration,
    },
    /// Hold one bucket of the lane.
    Limit {
        /// For how long.
        wait: Duration,
    },
    /// The failure counts against the message: retry it later.
    Retry {
        /// How much later.
        wait: Duration,
    },
    /// The failure counts, and it was the last attempt: reject the message.
    Reject,
    /// Another worker deals with the backpressure: return the messages to the queue.
    Yield,
    /// The failure does not count: return the message to the queue.
    Defer {
        /// How long it is deferred, so that others are tried in its place.
        wait: Duration,
        /// Hold the lane, too, for this long.
        opens: Option<Duration>,
    },
    /// The lane delivers.
    Recover {
        /// Whether to remove its hold.
        closes: bool,
        /// Deferred messages to make due, with those that another process deferred; `None`: no need to ask the store.
        releases: Option<Vec<MessageId>>,
    },
}

/// Which ids the server refuses for the time in them, and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedIds {
    /// The window as far as it is known.
    pub window: IdWindow,
    /// The beginning of the last answer that said so; its status was 400.
    pub answer: String,
    /// When it came, in milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// A replayer's memory of one lane.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaneHealth {
    /// The pace of the last batch in this round.
    pace: Option<Pace>,
    /// How many workers may have a batch in flight.
    concurrency: Concurrency,
    /// How many have, without those beside requests that hang.
    turns: usize,
    /// The turn that met backpressure first, while it deals with it.
    sole: Option<u64>,
    /// How often a turn met backpressure first: those that began before send nothing more.
    strains: u64,
    next_turn: u64,
    /// How often the circuit opened, or a bucket was limited, since a request passed.
    openings: u32,
    /// The most messages in the next batch while the lane recovers; `None`: as many as the pace allows.
    recovery_window: Option<usize>,
    /// Batches with a deferred message since a request passed. A failed probe is deferred for longer the more there
    /// were, so that the messages behind it get their turn as probes, however many poison messages are at the head.
    failed_probes: u32,
    /// Messages that failed since a request passed, as many as are worth telling apart.
    failing: HashSet<MessageId>,
    /// How many requests passed, ever.
    passes: u64,
    /// Messages whose last failure did not count, with `passes` as it was then: once another passed, the next counts.
    deferred: HashMap<MessageId, u64>,
    /// Those of them that wait behind the next probes.
    waiting: HashSet<MessageId>,
    /// How often a message got no answer in time.
    timeouts: HashMap<MessageId, u32>,
    refused_ids: Option<(RefusedIds, Duration)>,
    /// The held message that is retried on behalf of the lane's others.
    held_probe: Option<MessageId>,
}

impl LaneHealth {
    /// Starts a round: every lane begins at the configured pace, with one worker. In a fleet the pace stays: it answers
    /// to the load that all agents cause.
    pub(crate) fn begin_round(&mut self) {
        self.pace = self.pace.filter(Pace::is_of_fleet);
        (self.concurrency, self.turns, self.sole) = (Concurrency::default(), 0, None);
    }

    /// Starts a worker's turn. `ended_hold` is whether the lane's last hold, if no message was delivered since, asks
    /// for a probe; `is_extra`: another worker of the lane waits for an answer.
    pub(crate) fn begin_turn(
        &mut self,
        settings: BreakerSettings,
        start: Pace,
        ended_hold: Option<bool>,
        is_extra: bool,
    ) -> LaneTurn {
        let circuit = ended_hold.map_or(Circuit::Closed, |is_probe| Circuit::HalfOpen { is_probe });
        self.turns += usize::from(!is_extra);
        self.next_turn += 1;
        LaneTurn {
            number: self.next_turn,
            settings,
            circuit,
            is_extra,
            claimed_under: None,
            strains: self.strains,
            has_released: false,
            pace: self.pace.unwrap_or(start),
            passes: 0,
            failures: 0,
            timeouts: 0,
            has_failed: false,
            has_deferred: false,
            has_slowed: false,
        }
    }

    /// Returns whether nothing is remembered of the lane that its next turn depends on, beside its pace.
    pub(crate) fn is_carefree(&self) -> bool {
        self.openings == 0
            && self.recovery_window.is_none()
            && self.failed_probes == 0
            && self.failing.is_empty()
            && self.deferred.is_empty()
            && self.waiting.is_empty()
            && self.timeouts.is_empty()
            && self.refused_ids.is_none()
            && self.held_probe.is_none()
            && self.turns == 0
            && self.sole.is_none()
    }

    /// Starts the turn of one more worker beside this one, if the lane may have another batch in flight.
    pub(crate) fn join(&mut self, beside: &LaneTurn) -> Option<LaneTurn> {
        let may = beside.circuit == Circuit::Closed
            && !beside.is_extra
            && self.sole.is_none()
            && self.may_send(beside)
            && self.recovery_window.is_none()
            && self.turns < self.concurrency.batches();
        may.then(|| {
            let pace = self.pace_of(beside);
            LaneTurn { has_released: true, ..self.begin_turn(beside.settings, pace, None, false) }
        })
    }

    /// Ends a worker's turn.
    pub(crate) fn end_turn(&mut self, turn: &LaneTurn) {
        self.turns = self.turns.saturating_sub(usize::from(!turn.is_extra));
        self.sole = self.sole.filter(|sole| *sole != turn.number);
    }

    /// Returns how many workers have batches in flight, without those beside requests that hang.
    pub(crate) fn turns(&self) -> usize {
        self.turns
    }

    /// Returns whether this worker may send: no other one met backpressure first since its turn began.
    pub(crate) fn may_send(&self, turn: &LaneTurn) -> bool {
        turn.is_extra || self.sole.map_or(self.strains == turn.strains, |sole| sole == turn.number)
    }

    /// Notes backpressure: unless another worker met it before, the others send nothing more. Returns whether this
    /// worker deals with it.
    pub(crate) fn strain(&mut self, turn: &LaneTurn) -> bool {
        if turn.is_extra {
            return true;
        }
        self.concurrency = Concurrency::default();
        if self.sole.is_none() && self.may_send(turn) {
            self.sole = Some(turn.number);
            self.strains += 1;
        }
        self.sole == Some(turn.number)
    }

    /// Returns how many messages the next batch may have, if it is claimed now.
    pub(crate) fn batch_max(&self, turn: &LaneTurn) -> usize {
        let most = match turn.circuit {
            Circuit::HalfOpen { is_probe: true } => 1,
            _ => self.recovery_window.unwrap_or(usize::MAX).min(self.pace_of(turn).batch()),
        };
        if turn.is_extra { most.min(SLOW_BATCH_MAX) } else { most }
    }

    /// Notes how long a batch took that met no backpressure, before it is [settled](Event::BatchSettled).
    pub(crate) fn timed(&mut self, turn: &LaneTurn, batch: BatchTime) {
        if !turn.is_extra && self.sole.is_none() && self.may_send(turn) && self.raises_limits(turn) {
            self.concurrency = self.concurrency.after(batch);
        }
    }

    /// Records the latency of the requests of a batch with this number of messages, before it is
    /// [settled](Event::BatchSettled). The pace of a fleet slows down when they take longer and longer.
    pub(crate) fn answered(&mut self, turn: &mut LaneTurn, waiting: Duration, messages: usize) {
        if turn.is_extra || turn.passes == 0 || turn.has_failed {
            return;
        }
        let mut pace = self.pace_of(turn);
        let latency = waiting / u32::try_from(turn.passes).unwrap_or(u32::MAX);
        turn.has_slowed = pace.timed(latency, messages / turn.passes);
        self.pace = Some(pace);
    }

    fn pace_of(&self, turn: &LaneTurn) -> Pace {
        self.pace.unwrap_or(turn.pace)
    }

    /// Returns whether a batch may raise the limits: of several claimed under one limit, the first does.
    fn raises_limits(&self, turn: &LaneTurn) -> bool {
        turn.claimed_under.is_none_or(|limit| limit >= self.batch_max(turn))
    }

    /// Takes what happened in a turn, and returns what to do. `jitter` in 0.0 to 1.0 spreads the waits of lanes and
    /// messages that failed together.
    pub(crate) fn on(&mut self, turn: &mut LaneTurn, event: Event, jitter: f64) -> Decision {
        let retry_interval = turn.settings.retry_interval;
        match event {
            Event::Passed => {
                turn.passes += 1;
                (turn.failures, turn.timeouts) = (0, 0);
                (self.failed_probes, self.openings) = (0, 0);
                self.failing.clear();
                self.passes += 1;
                Decision::Continue
            }
            Event::TransientFailure(failure) => self.on_transient_failure(turn, failure, jitter),
            Event::LaneRefused { asked } => {
                self.strain(turn);
                turn.circuit = Circuit::Open;
                // A key is not renewed within seconds.
                Decision::Open { wait: backoff::lane_wait(u32::MAX, jitter, asked, retry_interval) }
            }
            Event::RateLimited { asked } => {
                // Answers to requests that were in flight together are one sign.
                if self.strain(turn) {
                    self.openings = self.openings.saturating_add(1);
                }
                Decision::Limit { wait: backoff::lane_wait(self.openings, jitter, asked, retry_interval) }
            }
            Event::FailedAlone(failed) => self.on_failed_alone(turn, failed, jitter),
            Event::BatchSettled { delivered, halted, limited } => {
                let (pace, raises) = (self.pace_of(turn), self.raises_limits(turn));
                let decision = if delivered { self.recover(turn) } else { Decision::Continue };
                if !halted && !turn.has_failed && raises {
                    let window = self.recovery_window.map(|most| most.saturating_mul(2));
                    self.recovery_window = window.filter(|most| *most < pace.batch());
                }
                turn.pace = match (halted || limited, raises) {
                    _ if !self.may_send(turn) => pace,
                    (true, _) => pace.after(BatchEnd::Strained),
                    (false, _) if turn.has_slowed => pace.after(BatchEnd::Slowed),
                    (false, true) => pace.after(BatchEnd::KeptUp),
                    (false, false) => pace,
                };
                self.pace = Some(turn.pace);
                if !halted && !limited && !turn.has_failed && self.sole == Some(turn.number) {
                    (self.sole, turn.strains) = (None, self.strains);
                }
                decision
            }
        }
    }

    fn on_transient_failure(&mut self, turn: &mut LaneTurn, failure: TransientFailure, jitter: f64) -> Decision {
        turn.has_failed = true;
        if !self.strain(turn) {
            return Decision::Yield;
        }
        turn.failures += 1;
        turn.timeouts += u32::from(failure.is_unanswered);
        let is_slow = failure.took >= SLOW_FAILURE;
        if is_slow {
            let most = self.recovery_window.unwrap_or(usize::MAX);
            self.recovery_window = Some(most.min(SLOW_BATCH_MAX));
        }
        let is_silent = turn.passes == 0 && turn.timeouts >= TIMEOUTS_MAX;
        if turn.failures >= TRANSIENT_FAILURES_MAX || is_silent {
            return Decision::Open { wait: self.open(turn, failure.asked, jitter) };
        }
        Decision::Divide { halvings: if is_slow { SLOW_BATCH_MAX.ilog2() } else { 1 } }
    }

    /// Decides whether a failure counts against its message. One that does not is the server's: the lane is held and
    /// another message is the next probe, so that a poison message can't keep the circuit open.
    fn on_failed_alone(&mut self, turn: &mut LaneTurn, failed: FailedAlone, jitter: f64) -> Decision {
        let FailedAlone { message, attempts, passes, failure, halted } = failed;
        let passed_since_deferred = self.deferred.remove(&message).is_some_and(|earlier| self.passes > earlier);
        let counts = blame::counts(Evidence {
            passed_since: turn.passes > passes || passed_since_deferred,
            passed_beside: turn.passes > 0,
            is_suspect: attempts > 0,
            failing: self.failing.len(),
        });
        if counts {
            let attempts = attempts.saturating_add(1);
            return match !failure.is_unanswered && backoff::is_exhausted(attempts, turn.settings.attempts_max) {
                true => Decision::Reject,
                false => Decision::Retry { wait: backoff::wait(attempts, jitter, failure.asked, failure.took) },
            };
        }
        // Only the first of a batch makes room for the next probes.
        let is_first = !std::mem::replace(&mut turn.has_deferred, true);
        let opens = (is_first && !halted).then(|| self.open(turn, failure.asked, jitter));
        let mut wait = Duration::ZERO;
        if is_first {
            self.failed_probes = self.failed_probes.saturating_add(1);
            let intervals = self.failed_probes.saturating_add(2);
            wait = turn.settings.retry_interval.saturating_mul(intervals).min(DEFER_MAX);
        }
        if self.deferred.len() < REMEMBERED_MAX {
            self.deferred.insert(message, self.passes);
            if is_first {
                self.waiting.insert(message);
            }
        }
        Decision::Defer { wait, opens }
    }

    /// Opens the circuit breaker; afterwards the lane recovers from a window of one message.
    fn open(&mut self, turn: &mut LaneTurn, asked: Option<Duration>, jitter: f64) -> Duration {
        turn.circuit = Circuit::Open;
        self.openings = self.openings.saturating_add(1);
        self.recovery_window = Some(1);
        backoff::lane_wait(self.openings, jitter, asked, turn.settings.retry_interval)
    }

    fn recover(&mut self, turn: &mut LaneTurn) -> Decision {
        let closes = matches!(turn.circuit, Circuit::HalfOpen { .. });
        if closes {
            turn.circuit = Circuit::Closed;
        }
        let waiting: Vec<MessageId> = match self.failed_probes {
            0 => self.waiting.drain().collect(),
            _ => Vec::new(),
        };
        // In its first delivery a turn also releases what a process deferred that may be dead by now.
        let is_first = !std::mem::replace(&mut turn.has_released, true);
        Decision::Recover { closes, releases: (is_first || !waiting.is_empty()).then_some(waiting) }
    }

    /// Adds messages that failed since a request passed.
    pub(crate) fn note_failed(&mut self, messages: impl IntoIterator<Item = MessageId>) {
        for message in messages {
            if self.failing.len() <= FAILING_MAX {
                self.failing.insert(message);
            }
        }
    }

    /// Returns whether the message failed before, and it is unknown whose fault it was.
    pub(crate) fn is_deferred(&self, message: MessageId) -> bool {
        self.deferred.contains_key(&message)
    }

    /// Counts a timeout of each of these messages.
    pub(crate) fn note_timeouts(&mut self, messages: impl IntoIterator<Item = MessageId>) {
        for message in messages {
            if self.timeouts.len() < REMEMBERED_MAX || self.timeouts.contains_key(&message) {
                let count = self.timeouts.entry(message).or_default();
                *count = count.saturating_add(1);
            }
        }
    }

    /// Returns how often a message got no answer in time, as far as remembered.
    pub(crate) fn timeouts(&self, message: MessageId) -> u32 {
        self.timeouts.get(&message).copied().unwrap_or(0)
    }

    /// Learns from an answer which ids the server refuses for their time. `server_ms` is the answer's `Date`, `now` a
    /// reading of a monotonic clock.
    pub(crate) fn note_refused_ids(
        &mut self,
        outside: &Outside,
        server_ms: Option<i64>,
        (answer, at_ms): (&str, i64),
        now: Duration,
    ) {
        let mut window = self.refused_ids(now).map(|known| known.window).unwrap_or_default();
        window.learn(outside, server_ms);
        self.refused_ids = Some((RefusedIds { window, answer: answer.to_owned(), at_ms }, now));
    }

    /// Returns which ids the server refuses, if it said so a moment ago.
    pub(crate) fn refused_ids(&self, now: Duration) -> Option<&RefusedIds> {
        let (refused, since) = self.refused_ids.as_ref()?;
        (now.saturating_sub(*since) < REFUSED_IDS_LIFE).then_some(refused)
    }

    /// Notes that a held message is sent again as a probe for the others. An earlier one was answered since, or waits
    /// in the lane like any other.
    pub(crate) fn probe_held(&mut self, message: MessageId) {
        self.refused_ids = None;
        self.held_probe = Some(message);
    }

    /// Forgets messages whose outcome is final and durable; `delivered` are those that the server confirmed. Returns
    /// whether one of them was the probe for held messages: the server accepts its id now, and perhaps the others'.
    pub(crate) fn settled(&mut self, decided: &[MessageId], delivered: &[MessageId]) -> bool {
        if !self.timeouts.is_empty() {
            for message in decided {
                self.timeouts.remove(message);
            }
        }
        self.held_probe.take_if(|probe| delivered.contains(probe)).is_some()
    }
}

#[cfg(test)]
mod tests;
