//! One round: the lease is taken, due lanes get workers, and the round ends once nothing is due.

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::context::{DrainEnd, Replayer};
use super::lane::{LaneWorker, claim_bytes_max};
use super::lease::LeaseKeeper;
use super::sender::Sender;
use super::small_lanes::{SmallLanes, WORKERS};
use super::sweep::{LANES_LISTED, Sweep};
use super::throttle::{MessageQuota, PauseGate};
use super::workers::{LaneWorkers, RoundEvent};
use crate::delivery::fleet_pacing::FleetPace;
use crate::delivery::pacing::{Pace, PaceSettings};
use crate::message::{MessageStatus, Server};
use crate::monitor::Availability;
use crate::store::{Filter, LaneWork, Owner, ReplayRecord, Store, StoreError, now_ms};

/// How often a round lists the lanes that became due while others are being replayed.
const LANES_INTERVAL: Duration = Duration::from_millis(100);

/// Returns whether the store has held messages.
pub(super) fn has_held(store: &dyn Store, servers: &[Server]) -> Result<bool, StoreError> {
    let held = Filter { statuses: vec![MessageStatus::Held], servers: servers.to_vec(), ..Filter::default() };
    Ok(store.backlog(&held)?.messages() > 0)
}

impl Replayer<'_> {
    /// Replays all that is due, until nothing is, and returns how it ended.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseHeld`] while another process replays this store, [`StoreError::LeaseLost`] if it took over in
    /// the middle, and what else keeps the store from being used. The claimed messages are *failed* again, at once or
    /// when the next round starts.
    pub fn drain(&self, owner: &Owner) -> Result<DrainEnd, StoreError> {
        let keeper = LeaseKeeper::acquire(self.store, owner)?;
        self.state.begin(self.store.identity(), keeper.lease.epoch);
        let started_at_ms = now_ms();
        let before = self.delivered_and_rejected();
        let looked = self.state.hold().look(self.store);
        let result = looked.and_then(|()| self.store.return_in_flight(&keeper.lease)).and_then(|returned| {
            if returned > 0 {
                self.state.interrupted();
                info!(target: "replay_manager", "returned {returned} in-flight messages to the queue");
            }
            if self.held_for().is_some() {
                return Ok(DrainEnd::Held);
            }
            self.retry_held(&keeper)?;
            self.replay_lanes(&keeper)
        });
        let after = self.delivered_and_rejected();
        let (delivered, rejected) = (after.0 - before.0, after.1 - before.1);
        if delivered + rejected > 0 {
            self.note(owner, started_at_ms, delivered, rejected);
        }
        self.store.release(&keeper.lease)?;
        result
    }

    /// Sends one held message of each lane again as a probe, if the last refusal is long enough ago.
    fn retry_held(&self, keeper: &LeaseKeeper<'_>) -> Result<(), StoreError> {
        // A person who selects messages means these and no others; an agent only names the servers that are its own.
        let selects = self.settings.filter != self.own();
        if selects || !self.state.is_held_check_due(self.settings.held_interval()) {
            return Ok(());
        }
        let interval_ms = i64::try_from(self.settings.held_interval().as_millis()).unwrap_or(i64::MAX);
        let probes = match has_held(self.store, &self.settings.filter.servers)? {
            true => self.store.retry_held(&keeper.lease, now_ms().saturating_sub(interval_ms))?,
            false => Vec::new(),
        };
        self.state.held_checked(&probes);
        Ok(())
    }

    fn delivered_and_rejected(&self) -> (u64, u64) {
        (self.metrics.messages_delivered.get(), self.metrics.messages_rejected.get())
    }

    /// Returns the filter for everything stored for the servers to which this replay delivers.
    fn own(&self) -> Filter {
        Filter { servers: self.settings.filter.servers.clone(), ..Filter::default() }
    }

    fn note(&self, owner: &Owner, started_at_ms: i64, delivered: u64, rejected: u64) {
        let remaining = self.store.backlog(&self.own()).map_or(0, |backlog| backlog.waiting());
        let role = owner.role.clone();
        let round = ReplayRecord { role, started_at_ms, ended_at_ms: now_ms(), delivered, rejected, remaining };
        let record = self.state.add_round(round);
        // The record is for `status` only: if it cannot be written, the replay's own result still counts.
        if let Err(error) = self.store.note_replay(&record) {
            debug!(target: "replay_manager", %error, "the replay is not recorded");
        }
        info!(target: "replay_manager", delivered, rejected, remaining, "replayed");
    }

    /// Gives due lanes to workers until nothing is due and every worker has returned.
    fn replay_lanes(&self, keeper: &LeaseKeeper<'_>) -> Result<DrainEnd, StoreError> {
        let (gate, quota) = (PauseGate::default(), MessageQuota::new(self.settings.limit));
        let (done, finished) = mpsc::channel();
        let small = SmallLanes::new(self, keeper, done.clone());
        let mut round = Round {
            replay: self,
            keeper,
            pace: self.pace_of_round(),
            gate: &gate,
            quota: &quota,
            small: &small,
            shared_workers: HashSet::new(),
            workers: LaneWorkers::new(self.workers_max.max(1), self.upstream.answer_timeout()),
            lanes: VecDeque::new(),
            sweep: Sweep::default(),
            listing: Duration::ZERO,
            list_at: Instant::now(),
            next_due_at_ms: i64::MAX,
            failed: None,
            done,
        };
        std::thread::scope(|scope| {
            loop {
                self.shutdown.beat();
                if let Err(error) = self.renew_and_look(keeper) {
                    round.fail(error);
                }
                while round.failed.is_none() && self.stop_reason(&quota).is_none() {
                    round.list_lanes_if_due();
                    round.start_workers(scope);
                    if !round.wants_lanes() {
                        break;
                    }
                    self.shutdown.beat();
                    if let Err(error) = self.renew_and_look(keeper) {
                        round.fail(error);
                    }
                }
                if round.must_list_again() {
                    continue;
                }
                if round.workers.is_empty() {
                    if let Err(error) = small.finish() {
                        round.fail(error);
                    }
                    return round.end();
                }
                let mut ended = finished.recv_timeout(LANES_INTERVAL).ok();
                // Whether or not a worker ended: others may come and go all the time while these lanes wait.
                if let Err(error) = small.settle_leftovers(Instant::now()) {
                    round.fail(error);
                }
                while let Some(event) = ended {
                    if let RoundEvent::Ended(number, result) = event {
                        round.workers.remove(number);
                        round.shared_workers.remove(&number);
                        if let Err(error) = result {
                            round.fail(error);
                        }
                    }
                    ended = finished.try_recv().ok();
                }
            }
        })
    }

    /// Renews the lease and reads the hold of the store, both of which workers check before each request.
    fn renew_and_look(&self, keeper: &LeaseKeeper<'_>) -> Result<(), StoreError> {
        keeper.renew_if_due()?;
        self.state.hold().look_if_due(self.store)
    }

    /// Returns the pace that lanes of this round start with: in a fleet, the rate at which the backlog was accepted.
    fn pace_of_round(&self) -> PaceSettings {
        let pace = self.settings.pace;
        if pace.fleet.is_none() {
            return pace;
        }
        let Ok(backlog) = self.store.backlog(&self.own()) else { return pace };
        let age_ms = backlog.oldest_accepted_at_ms.map_or(0, |oldest| now_ms().saturating_sub(oldest));
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        PaceSettings { fleet: Some(FleetPace::of_backlog(backlog.waiting(), age)), ..pace }
    }

    /// Returns why nothing more is sent, if so.
    fn stop_reason(&self, quota: &MessageQuota) -> Option<DrainEnd> {
        if self.shutdown.is_requested() {
            Some(DrainEnd::Stopped)
        } else if self.connection.availability() == Availability::Unavailable {
            Some(DrainEnd::Unavailable)
        } else if self.held_for().is_some() {
            Some(DrainEnd::Held)
        } else if quota.is_spent() {
            Some(DrainEnd::LimitReached)
        } else {
            None
        }
    }
}

/// A round in progress, as its coordinator sees it.
struct Round<'r> {
    replay: &'r Replayer<'r>,
    keeper: &'r LeaseKeeper<'r>,
    /// What a lane starts with.
    pace: PaceSettings,
    gate: &'r PauseGate,
    quota: &'r MessageQuota,
    /// Lanes with a few messages each.
    small: &'r SmallLanes<'r>,
    /// The workers of these.
    shared_workers: HashSet<u64>,
    workers: LaneWorkers,
    /// Lanes with work that have no worker yet.
    lanes: VecDeque<LaneWork>,
    /// Which lanes are listed next.
    sweep: Sweep,
    /// How long listing them took so far.
    listing: Duration,
    /// When the store is asked for all lanes again.
    list_at: Instant,
    /// When the first lane becomes due that is not.
    next_due_at_ms: i64,
    /// The first error of the store: the round ends with it.
    failed: Option<StoreError>,
    /// Takes the events of the workers.
    done: mpsc::Sender<RoundEvent>,
}

impl<'r> Round<'r> {
    fn fail(&mut self, error: StoreError) {
        self.failed.get_or_insert(error);
    }

    /// Returns whether the round would end although the lanes have to be listed once more.
    fn must_list_again(&self) -> bool {
        let is_open = self.workers.is_empty() && self.sweep.is_over() && !self.sweep.is_conclusive();
        is_open && self.failed.is_none() && self.replay.stop_reason(self.quota).is_none()
    }

    /// Returns whether another page of lanes is listed at once.
    fn wants_lanes(&self) -> bool {
        !self.sweep.is_over() && self.lanes.is_empty() && self.small.waiting() < LANES_LISTED
    }

    /// Lists the next lanes if there is room for them, and all of them again when the result may differ: with thousands
    /// of lanes that takes long.
    fn list_lanes_if_due(&mut self) {
        let started = Instant::now();
        if self.sweep.is_over() {
            let any_left = !self.lanes.is_empty() || self.small.waiting() > 0;
            if !self.workers.is_empty() && (any_left || self.list_at > started) {
                return;
            }
            // Also in the middle of a round: a worker that waits for an answer may keep it going through an outage.
            if let Err(error) = self.replay.end_outage_waits(self.keeper) {
                return self.fail(error);
            }
            let sweep = Sweep::start(self.workers.is_empty());
            (self.sweep, self.listing, self.next_due_at_ms) = (sweep, Duration::ZERO, i64::MAX);
        } else if !self.wants_lanes() {
            return;
        }
        let filter = &self.replay.settings.filter;
        match self.replay.store.lane_page(filter, self.sweep.range(), now_ms()) {
            Err(error) => return self.fail(error),
            Ok(page) => {
                let Self { sweep, replay, .. } = self;
                let found = page.lanes.into_iter();
                self.lanes.extend(found.filter(|work| sweep.takes(replay.connection.lanes().is_failing(&work.lane))));
                self.sweep.listed(page.next);
            }
        }
        self.listing += started.elapsed();
        self.list_at = started + LANES_INTERVAL.max(self.listing * 4);
    }

    /// Gives due lanes to workers. Those that find none now are listed again.
    fn start_workers<'s>(&mut self, scope: &'s Scope<'s, '_>)
    where
        'r: 's,
    {
        self.note_sending();
        self.start_shared_workers(scope, WORKERS);
        let are_limited = self.replay.is_limited();
        let are_shared_stuck = are_limited || self.workers.are_shared_stuck(Instant::now());
        if are_shared_stuck {
            match self.small.give_back() {
                Err(error) => self.fail(error),
                Ok(lanes) => self.lanes.extend(lanes),
            }
        }
        let now = now_ms();
        while let Some(work) = self.lanes.pop_front().filter(|_| self.failed.is_none()) {
            if work.due_at_ms > now {
                self.next_due_at_ms = self.next_due_at_ms.min(work.due_at_ms);
                continue;
            }
            let is_extra = self.workers.has(work.id);
            let work = match is_extra {
                true => work,
                false => match self.small.take(work, !are_shared_stuck) {
                    None => continue,
                    Some(work) => work,
                },
            };
            let is_failing = self.replay.connection.lanes().is_failing(&work.lane);
            let Some(number) = self.workers.admit(&work, is_failing, Instant::now()) else {
                if is_extra {
                    continue;
                }
                self.lanes.push_front(work);
                break;
            };
            let worker = self.worker(work, is_extra);
            let done = self.done.clone();
            scope.spawn(move || {
                // The receiver outlives the scope, so sending can't fail.
                let _ = done.send(RoundEvent::Ended(number, worker.run_caught()));
            });
        }
        self.start_shared_workers(scope, usize::MAX);
    }

    /// Tells the policy which lanes the shared workers are with.
    fn note_sending(&mut self) {
        let (sending, now) = (self.small.sending(), Instant::now());
        for number in &self.shared_workers {
            self.workers.moved(*number, sending.get(number).copied(), now);
        }
    }

    /// Starts workers for the lanes with a few messages each, until there are this many.
    fn start_shared_workers<'s>(&mut self, scope: &'s Scope<'s, '_>, most: usize)
    where
        'r: 's,
    {
        let now = Instant::now();
        while self.failed.is_none() && self.shared_workers.len() < self.small.workers_wanted(now).min(most) {
            let Some(number) = self.workers.admit_shared(now) else { break };
            self.shared_workers.insert(number);
            let (small, done) = (self.small, self.done.clone());
            scope.spawn(move || {
                let _ = done.send(RoundEvent::Ended(number, small.work(number)));
            });
        }
    }

    fn worker(&self, work: LaneWork, is_extra: bool) -> LaneWorker<'r> {
        let settings = self.replay.settings;
        let turn = self.replay.state.begin_turn(&work, Pace::start(self.pace), settings.breaker(), is_extra);
        LaneWorker {
            sender: Sender { replay: self.replay, keeper: self.keeper, work },
            gate: self.gate,
            quota: self.quota,
            turn,
            claim_bytes_max: claim_bytes_max(self.workers.len()),
        }
    }

    /// Returns how the round ended.
    fn end(&mut self) -> Result<DrainEnd, StoreError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        Ok(self.replay.stop_reason(self.quota).unwrap_or(match self.next_due_at_ms {
            i64::MAX => DrainEnd::Empty,
            next_due_at_ms => DrainEnd::NotDue { next_due_at_ms },
        }))
    }
}
