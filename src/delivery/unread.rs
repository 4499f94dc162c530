//! Order among the writes of a lane while some of its creates are forwarded unread. Pure.
//!
//! A create that goes straight through is neither inflated nor parsed, so nobody knows its entities while it is in
//! flight, and it takes no entity lock. Here each write of a lane is an entry of its *window*, numbered in the order in
//! which they come to be forwarded, from then until nothing can go wrong with it any more. Once something makes the
//! entities of an unread create matter, it is read, and order is enforced as if it had been read at once.
//!
//! # Rules
//!
//! - A create goes unread only while no write of its lane is being stored, none is in flight that ends entities or may
//!   not be repeated, and none has been in flight for longer than [`AGE_MAX`]. So behind a slow or failing server every
//!   write is read, and the order of arrival is exact.
//! - A write whose entities are known waits at the *gate* until the unread creates before it are answered
//!   ([`LaneWindow::gate`]). When that takes longer than [`AGE_MAX`], they are read, and it waits for those that conflict
//!   with it.
//! - A write that has to be stored *waits its turn* behind earlier writes that it conflicts with and that are not
//!   decided ([`LaneWindow::turn`]). Everything that was delivered after it, and that it would overtake, is stored again
//!   behind it, in one commit with it. A later write that is still in flight is stored once it is delivered, before
//!   its client gets the answer.
//! - A create that can't be read for now may be about anything.
//! - A write waits at the gate while [`ENTRIES_MAX`] writes or [`BYTES_MAX`] bytes are before it.
//!
//! Waiting is always for smaller numbers, so it can't end in a deadlock.
//!
//! # What is guaranteed
//!
//! A write that is sent after the answer to another one is never applied before it, and whatever fails, the last write
//! in the order of the window is the one that the server ends with. Two writes of which neither was answered when the
//! other was sent have no order in HTTP. If one of them is an unread create, the server may apply them in either order,
//! provided that they arrive within [`AGE_MAX`] of each other; read ones keep the order of their arrival even then.
//!
//! This holds for an unread create beside an unanswered update or score, too. To read creates because of these would
//! mean to read most of them under ordinary traffic, and would order nothing that its clients can rely on: between a
//! client and the agent, two requests on two connections may overtake each other as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Touch, conflict};

/// How long a write may be in flight until new creates of its lane are read, and until an unread create is read because
/// a write waits for it. Several times the latency of a busy server nearby, so that reading stays the exception there,
/// and short beside the time that clients take to react to an answer that they don't get.
pub(crate) const AGE_MAX: Duration = Duration::from_millis(25);
/// Entries of a window, and bytes of the bodies that it holds, past which creates are read, and writes wait for those
/// before them. So what has to be stored again with a write fits into one commit.
pub(crate) const ENTRIES_MAX: usize = 256;
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// Entries at which those are searched for that can be dropped out of order.
const COMPACT_MIN: usize = 128;

/// What a write is about, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) enum Concerns {
    /// It was not read.
    Unread,
    /// These entities.
    Entities(Arc<[Touch]>),
    /// Perhaps any entity of the lane.
    Lane,
}

impl Concerns {
    fn is_unread(&self) -> bool {
        matches!(self, Self::Unread)
    }

    fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Entities(ours), Self::Entities(theirs)) => conflict(ours, theirs),
            _ => true,
        }
    }
}

/// A write whose entities are locked.
#[derive(Clone, Debug)]
pub(crate) struct Locked {
    pub(crate) concerns: Concerns,
    /// No create of its lane is forwarded unread beside it: it ends entities, or is final.
    pub(crate) bars: bool,
    /// It can't be stored, or must not be sent twice, so it follows all that may have to be stored again.
    pub(crate) is_final: bool,
}

/// The state of a write in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlightState {
    /// At the gate.
    Waiting,
    /// On its way to the server, or about to be.
    Sent,
    /// The server has it.
    Delivered,
    /// It has to be stored.
    Storing,
}

#[derive(Debug)]
struct WindowEntry<T> {
    began: Duration,
    concerns: Concerns,
    /// It holds the locks of its entities, so that it keeps order with all others that do.
    is_locked: bool,
    bars: bool,
    is_final: bool,
    state: FlightState,
    /// Earlier writes that were stored meanwhile, or are about to be: this one has to be stored behind them even if the
    /// server takes it.
    behind: Vec<u64>,
    /// What it takes to read it, or to store it again.
    kept: Option<(T, usize)>,
}

impl<T> WindowEntry<T> {
    fn is_decided(&self) -> bool {
        self.state == FlightState::Delivered
    }
}

/// What a write at the gate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It goes on.
    Open,
    /// It asks again after a change of the window, or at this time.
    Wait(Option<Duration>),
    /// Unread creates are read first ([`LaneWindow::unread`]).
    Read,
}

/// What a write that has to be stored does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreTurn<T> {
    /// It is stored, with these behind it in the same commit.
    Store(Vec<T>),
    /// It asks again after a change of the window.
    Wait,
    /// Unread creates are read first ([`LaneWindow::unread`]).
    Read,
}

/// Who has to ask again after a change of a write: of those with a larger number, which alone may wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wakes {
    /// Everyone who waits.
    All,
    /// Those below this number.
    Below(u64),
}

/// The writes of a lane that are in flight, and those that were delivered and may have to be stored again.
#[derive(Debug)]
pub(crate) struct LaneWindow<T> {
    next: u64,
    flights: BTreeMap<u64, WindowEntry<T>>,
    /// Those without locks that are not decided.
    open: BTreeSet<u64>,
    /// How many are without locks, unread, being stored, or bar unread creates.
    unlocked: usize,
    unread: usize,
    storing: usize,
    barring: usize,
    bytes: usize,
    compact_at: usize,
    /// Whether a write was delivered, read or removed since those were searched for that can be dropped.
    is_uncompacted: bool,
}

impl<T> Default for LaneWindow<T> {
    fn default() -> Self {
        Self {
            next: 0,
            flights: BTreeMap::new(),
            open: BTreeSet::new(),
            unlocked: 0,
            unread: 0,
            storing: 0,
            barring: 0,
            bytes: 0,
            compact_at: COMPACT_MIN,
            is_uncompacted: false,
        }
    }
}

impl<T: Clone> LaneWindow<T> {
    /// Returns whether no write is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Begins to forward a create unread, and returns its number; `None` if it has to be read first.
    pub(crate) fn begin_unread(&mut self, now: Duration, kept: impl FnOnce() -> (T, usize)) -> Option<u64> {
        let is_late = |flight: &WindowEntry<T>| now.saturating_sub(flight.began) > AGE_MAX;
        if self.storing > 0
            || self.barring > 0
            || self.is_full()
            || self.flights.first_key_value().is_some_and(|(_, oldest)| is_late(oldest))
        {
            return None;
        }
        let number = self.add(WindowEntry {
            began: now,
            concerns: Concerns::Unread,
            is_locked: false,
            bars: false,
            is_final: false,
            state: FlightState::Sent,
            behind: Vec::new(),
            kept: Some(kept()),
        });
        self.open.insert(number);
        Some(number)
    }

    /// Adds a write that holds the locks of its entities, and returns its number. It may go on once its gate is open.
    pub(crate) fn arrive(&mut self, now: Duration, Locked { concerns, bars, is_final }: Locked) -> u64 {
        let bars = bars || is_final;
        let state = FlightState::Waiting;
        let behind = Vec::new();
        self.add(WindowEntry { began: now, concerns, is_locked: true, bars, is_final, state, behind, kept: None })
    }

    /// Returns whether a write that has arrived may go on; if so, it counts as sent.
    pub(crate) fn gate(&mut self, number: u64, now: Duration) -> Gate {
        let gate = self.look_at_gate(number, now);
        if gate == Gate::Open
            && let Some(flight) = self.flights.get_mut(&number)
        {
            flight.state = FlightState::Sent;
        }
        gate
    }

    /// Returns whether writes wait for others only because there are too many.
    fn is_full(&self) -> bool {
        self.flights.len() >= ENTRIES_MAX || self.bytes >= BYTES_MAX
    }

    /// Returns whether too many are before a write. Later ones don't count, because they may wait for it.
    fn is_full_before(&self, number: u64) -> bool {
        let before = self.flights.range(..number).map(|(_, flight)| bytes_of(&flight.kept));
        self.is_full() && (before.clone().nth(ENTRIES_MAX - 1).is_some() || before.sum::<usize>() >= BYTES_MAX)
    }

    fn look_at_gate(&mut self, number: u64, now: Duration) -> Gate {
        let Some(is_final) = self.flights.get(&number).map(|flight| flight.is_final) else { return Gate::Open };
        let is_first = self.open.first().is_none_or(|open| *open > number);
        let mut is_full = self.unlocked > 0 && self.is_full_before(number);
        if self.unlocked == 0 || is_first && self.storing == 0 && !is_final && !is_full {
            return Gate::Open;
        }
        if is_final || is_full {
            self.compact();
            is_full = self.unlocked > 0 && self.is_full_before(number);
        }
        let Some(own) = self.flights.get(&number) else { return Gate::Open };
        let (mut waits, mut until) = (is_full, None::<Duration>);
        // What may be stored again, by writes that are being stored before this one.
        let mut storing: Vec<&Concerns> = Vec::new();
        for flight in self.flights.range(..number).map(|(_, flight)| flight) {
            let may_be_stored = match flight.state {
                // Once they are known, what follows nothing is dropped.
                _ if is_full && flight.concerns.is_unread() => true,
                FlightState::Storing => true,
                FlightState::Delivered => is_final || storing.iter().any(|before| before.conflicts(&flight.concerns)),
                FlightState::Sent => !flight.is_locked,
                FlightState::Waiting => false,
            };
            if !may_be_stored {
                continue;
            }
            if matches!(flight.state, FlightState::Storing | FlightState::Delivered) {
                storing.push(&flight.concerns);
            }
            if flight.concerns.is_unread() {
                let read_at = flight.began + AGE_MAX;
                if read_at <= now {
                    return Gate::Read;
                }
                until = Some(until.map_or(read_at, |until| until.min(read_at)));
                waits = true;
            } else if flight.concerns.conflicts(&own.concerns) {
                waits = true;
            }
        }
        if waits { Gate::Wait(until) } else { Gate::Open }
    }

    /// Records the server's answer: whether it has the write now. Returns whether the write has to be stored all the
    /// same, before its client gets the answer. `kept` is what it takes to store it again later. Asked again when it
    /// could not be stored: it need not be if what it had to follow was not stored either.
    pub(crate) fn answered(&mut self, number: u64, is_applied: bool, kept: impl FnOnce() -> (T, usize)) -> bool {
        let Some(flight) = self.flights.get_mut(&number) else { return false };
        if !is_applied {
            self.remove(number);
            return false;
        }
        self.barring -= usize::from(std::mem::take(&mut flight.bars));
        if !flight.behind.is_empty() {
            self.keep(number);
            return true;
        }
        self.storing -= usize::from(flight.state == FlightState::Storing);
        flight.state = FlightState::Delivered;
        self.open.remove(&number);
        if self.unlocked == 0 || flight.is_final {
            self.remove(number);
            return false;
        }
        let is_first = self.flights.first_key_value().is_some_and(|(first, _)| *first == number);
        if self.unread == 0 && !is_first && self.follows_nothing(number) {
            self.remove(number);
            return false;
        }
        if !is_first
            && let Some(flight) = self.flights.get_mut(&number)
            && flight.kept.is_none()
        {
            let kept = kept();
            self.bytes += kept.1;
            flight.kept = Some(kept);
        }
        self.is_uncompacted = true;
        self.settle();
        false
    }

    /// Returns whether no earlier write has anything in common with this one.
    fn follows_nothing(&self, number: u64) -> bool {
        let Some(own) = self.flights.get(&number) else { return true };
        !self.flights.range(..number).any(|(_, before)| before.concerns.conflicts(&own.concerns))
    }

    /// Records that a write has to be stored.
    pub(crate) fn keep(&mut self, number: u64) {
        if let Some(flight) = self.flights.get_mut(&number)
            && flight.state != FlightState::Storing
        {
            flight.state = FlightState::Storing;
            self.storing += 1;
        }
    }

    /// Returns whether a write that has to be stored may be, and what is stored behind it.
    pub(crate) fn turn(&mut self, number: u64) -> StoreTurn<T> {
        if self.unlocked == 0 {
            return StoreTurn::Store(Vec::new());
        }
        let Some(own) = self.flights.get(&number) else { return StoreTurn::Store(Vec::new()) };
        let (own, is_locked) = (own.concerns.clone(), own.is_locked);
        // What is stored before this write, or may be.
        let mut before: Vec<&Concerns> = Vec::new();
        let mut waits = false;
        for flight in self.flights.range(..number).map(|(_, flight)| flight) {
            if flight.is_decided() && !before.iter().any(|before| before.conflicts(&flight.concerns)) {
                continue;
            }
            before.push(&flight.concerns);
            let is_ordered = is_locked && flight.is_locked && !flight.is_decided();
            waits |= !is_ordered && flight.concerns.conflicts(&own);
        }
        let mut others = before.into_iter().chain(self.flights.range(number..).map(|(_, flight)| &flight.concerns));
        if others.any(Concerns::is_unread) {
            return StoreTurn::Read;
        }
        if waits {
            return StoreTurn::Wait;
        }
        let (mut group, mut repeated) = (vec![own], Vec::new());
        for flight in self.flights.range_mut(number + 1..).map(|(_, flight)| flight) {
            let follows = |flight: &WindowEntry<T>| group.iter().any(|before| before.conflicts(&flight.concerns));
            match flight.state {
                FlightState::Delivered if follows(flight) => {
                    group.push(flight.concerns.clone());
                    repeated.extend(flight.kept.as_ref().map(|(kept, _)| kept.clone()));
                }
                FlightState::Sent if !flight.is_final && follows(flight) => flight.behind.push(number),
                _ => {}
            }
        }
        StoreTurn::Store(repeated)
    }

    /// Records that a write certainly was not stored: nothing has to follow it any more.
    pub(crate) fn not_stored(&mut self, number: u64) {
        for (_, flight) in self.flights.range_mut(number..) {
            flight.behind.retain(|before| *before != number);
        }
    }

    /// Returns the unread creates, in their order.
    pub(crate) fn unread(&self) -> Vec<(u64, T)> {
        let unread = self.flights.iter().filter(|(_, flight)| flight.concerns.is_unread());
        unread.filter_map(|(number, flight)| Some((*number, flight.kept.as_ref()?.0.clone()))).collect()
    }

    /// Records what an unread create is about, and what it takes to store it again; `None` if nobody can read it.
    pub(crate) fn read(&mut self, number: u64, concerns: Arc<[Touch]>, kept: Option<(T, usize)>) {
        if let Some(flight) = self.learn(number, Concerns::Entities(concerns)) {
            let (before, after) = (bytes_of(&flight.kept), bytes_of(&kept));
            flight.kept = kept;
            self.bytes = self.bytes - before + after;
        }
        if self.unread == 0 {
            self.compact();
        }
    }

    /// Records that an unread create can't be read for now: it may be about anything.
    pub(crate) fn not_readable_now(&mut self, number: u64) {
        self.learn(number, Concerns::Lane);
    }

    /// Records what an unread create is about, and returns it.
    fn learn(&mut self, number: u64, concerns: Concerns) -> Option<&mut WindowEntry<T>> {
        let flight = self.flights.get_mut(&number).filter(|flight| flight.concerns.is_unread())?;
        flight.concerns = concerns;
        self.unread -= 1;
        self.is_uncompacted = true;
        Some(flight)
    }

    /// Removes a write that was stored or refused, or is not forwarded after all.
    pub(crate) fn remove(&mut self, number: u64) {
        self.take(number);
        self.settle();
    }

    fn take(&mut self, number: u64) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.open.remove(&number);
        self.unlocked -= usize::from(!flight.is_locked);
        self.unread -= usize::from(flight.concerns.is_unread());
        self.storing -= usize::from(flight.state == FlightState::Storing);
        self.barring -= usize::from(flight.bars);
        self.bytes -= bytes_of(&flight.kept);
        self.is_uncompacted = true;
    }

    /// Returns whether later writes wait for a write only because there are too many; `None` if they may wait for what
    /// becomes of it. They don't for one that has its locks and is on its way while nothing is stored.
    pub(crate) fn waits_for_room(&self, number: u64) -> Option<bool> {
        let is_plain = |flight: &WindowEntry<T>| flight.is_locked && flight.state == FlightState::Sent;
        let is_plain = self.flights.get(&number).is_some_and(is_plain) && self.storing == 0 && self.barring == 0;
        is_plain.then(|| self.is_full())
    }

    /// Returns the writes that are no longer too many.
    pub(crate) fn with_room(&self) -> Wakes {
        match self.flights.keys().nth(ENTRIES_MAX) {
            Some(number) if self.bytes < BYTES_MAX => Wakes::Below(*number),
            _ => Wakes::All,
        }
    }

    /// Returns who has to ask again now.
    pub(crate) fn wakes(&self) -> Wakes {
        match self.open.first() {
            Some(open) if self.storing == 0 && self.barring == 0 && self.unlocked == self.unread => Wakes::Below(*open),
            _ => Wakes::All,
        }
    }

    fn add(&mut self, flight: WindowEntry<T>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.unlocked += usize::from(!flight.is_locked);
        self.unread += usize::from(flight.concerns.is_unread());
        self.barring += usize::from(flight.bars);
        self.bytes += bytes_of(&flight.kept);
        self.flights.insert(number, flight);
        number
    }

    /// Drops what was delivered and has nothing undecided before it.
    fn settle(&mut self) {
        while let Some((number, first)) = self.flights.first_key_value()
            && first.is_decided()
        {
            let number = *number;
            self.take(number);
        }
        if self.flights.len() >= self.compact_at {
            self.compact();
            self.compact_at = COMPACT_MIN.max(2 * self.flights.len());
        }
    }

    /// Drops what was delivered and follows nothing that may have to be stored.
    fn compact(&mut self) {
        if !self.is_uncompacted {
            return;
        }
        let mut before: Vec<Concerns> = Vec::new();
        let mut settled = Vec::new();
        for (number, flight) in &self.flights {
            match flight.is_decided() && !before.iter().any(|before| before.conflicts(&flight.concerns)) {
                true => settled.push(*number),
                false => before.push(flight.concerns.clone()),
            }
        }
        settled.into_iter().for_each(|number| self.take(number));
        self.is_uncompacted = false;
    }
}

fn bytes_of<T>(kept: &Option<(T, usize)>) -> usize {
    kept.as_ref().map_or(0, |(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests;
