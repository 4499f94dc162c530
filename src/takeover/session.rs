//! A session: takes streams over and delivers them, with the machinery that replays a store.
//!
//! ```text
//! keeper    renews the heads                     feeder    takes, imports, sweeps
//! monitor   pings the server                     main      drains the scratch store through `Spooled`
//! dial      reads the pace, writes who shares it
//! ```
//!
//! Once it ends, for any reason, everything that is not finished is released: another replayer may take it at
//! once. A session that follows ends only when it is asked to.
//!
//! # Invariants
//!
//! - Nothing is taken unless the depot keeps conditional writes, or the user confirmed that there is a single replayer.
//! - Nothing is taken while the server is away.
//! - A message is settled only after its mark is durable ([`super::ledger`]).

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::error::TakeoverError;
use super::feeder::{FeedProgress, FeedSettings, FeedState, FeedTotals, Feeder};
use super::holdings::{HeadTiming, Holdings};
use super::importer::Importer;
use super::keys::FleetKeys;
use super::ledger::ReplayerLedger;
use super::reading::StreamReader;
use super::record_sorter::RecordSorter;
use super::scratch::ScratchStore;
use super::selection::FleetReplaySelection;
use super::standing::{EndsAll, FailsByPanic, OwnStreams, SessionStanding};
use super::sweep::delete_outdated_records;
use crate::depot::{Depot, prove};
use crate::fleet::dial_reader::DialReader;
use crate::fleet::head::HeadOwner;
use crate::fleet::spooled::Spooled;
use crate::memory::Budget;
use crate::message::{MessageStatus, Server};
use crate::monitor::connection::Connection;
use crate::monitor::{self, Availability, MonitorSettings};
use crate::replay::session::ProgressListener;
use crate::replay::{DrainEnd, ReplaySettings, ReplayState, Replayer};
use crate::shutdown::Shutdown;
use crate::store::{Filter, Keys, Limits, Owner, Store, StoreError, now_ms, since_boot};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;

/// How long to wait when there is nothing to do, or when something can't be done yet.
const PAUSE: Duration = Duration::from_millis(100);
/// The interval between checks whether it is time to read the fleet's dial.
const DIAL_TICK: Duration = Duration::from_millis(250);
/// The wait after an error of the depot or of the scratch store.
const ERROR_PAUSE: Duration = Duration::from_secs(2);
/// Errors in a row that end a session that does not follow.
const ERRORS_MAX: u32 = 5;

/// How streams are taken over and delivered.
#[derive(Clone, Debug)]
pub(crate) struct FleetReplaySettings {
    /// The folder in which the scratch store is made.
    pub scratch_folder: PathBuf,
    /// The limits of the scratch store.
    pub store_limits: Limits,
    /// The keys that it is encrypted with.
    pub store_keys: Keys,
    /// Only messages for this server are delivered.
    pub server: Server,
    /// Pings.
    pub monitor: MonitorSettings,
    /// Pace, attempts and limit; its filter is ignored.
    pub replay: ReplaySettings,
    /// Bytes of bodies that may be in memory.
    pub memory_budget: u64,
    /// How many lanes are replayed concurrently.
    pub workers_max: usize,
    /// How many bytes of messages may be in the scratch store.
    pub stage_bytes: u64,
    /// How long a head has to be silent before its stream is taken.
    pub takeover_after: Duration,
    /// Messages that are older are marked as expired.
    pub max_age: Option<Duration>,
    /// Whether nobody else replays this depot, for one that does not keep conditional writes.
    pub single_replayer: bool,
    /// Whether it keeps running when nothing is free.
    pub follows: bool,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Only these messages are delivered; the others stay.
    pub selection: FleetReplaySelection,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FleetEnding {
    /// Nothing is free, and everything that was taken is delivered, or stays for a reason.
    Complete,
    /// The user interrupted it.
    Interrupted,
    /// The time limit is reached.
    TimeOver,
    /// As many messages as were asked for are delivered or rejected.
    LimitReached,
    /// The server went away.
    ServerAway,
}

/// The result of a session.
#[derive(Debug)]
pub(crate) struct FleetConclusion {
    pub ending: FleetEnding,
    pub delivered: u64,
    pub rejected: u64,
    /// Messages that the server refuses for the time in their ids. They stay in the depot.
    pub held: u64,
    pub requests: u64,
    pub seconds: f64,
    /// Why messages that were taken remain, for people.
    pub reasons: Vec<String>,
    /// Whether one of the reasons is that the server refuses a key or a workspace.
    pub is_key_refused: bool,
    /// The flags that select what was selected, and the earlier streams that some of it waits for.
    pub with_earlier: Option<String>,
    pub totals: FeedTotals,
}

/// A session, see the module's head.
pub(crate) struct FleetReplay {
    depot: Arc<dyn Depot>,
    keys: FleetKeys,
    settings: FleetReplaySettings,
    scratch: ScratchStore,
    holdings: Arc<Holdings>,
    ledger: Arc<ReplayerLedger>,
    /// The decisions of people about the fleet's pace.
    dial: DialReader,
    spooled: Arc<dyn Store>,
    metrics: Metrics,
    shutdown: Shutdown,
    /// The streams that are never taken.
    own: Option<OwnStreams>,
    /// Why no more streams can be taken over now.
    problem: Mutex<Option<String>>,
}

impl FleetReplay {
    /// Checks the depot and prepares the scratch store. Takes nothing yet.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`], with nothing changed in the depot.
    pub(crate) fn open(
        depot: Arc<dyn Depot>,
        keys: FleetKeys,
        owner: HeadOwner,
        settings: FleetReplaySettings,
        shutdown: &Shutdown,
    ) -> Result<Self, TakeoverError> {
        ensure_exclusive(&*depot, settings.single_replayer)?;
        let scratch = ScratchStore::create(&settings.scratch_folder, settings.store_limits, &settings.store_keys)?;
        let timing = HeadTiming { takeover_after: settings.takeover_after };
        let holdings = Arc::new(Holdings::new(depot.clone(), owner, timing));
        let ledger = Arc::new(ReplayerLedger::new(depot.clone(), holdings.clone(), &keys));
        let spooled = Arc::new(Spooled::new(scratch.store().clone(), ledger.clone()));
        let (metrics, shutdown) = (Metrics::default(), shutdown.clone());
        let dial = DialReader::new(depot.clone(), settings.takeover_after);
        let (own, problem) = (None, Mutex::default());
        Ok(Self { depot, keys, settings, scratch, holdings, ledger, dial, spooled, metrics, shutdown, own, problem })
    }

    /// Never takes these streams, which are those of this process.
    pub(crate) fn sparing(self, own: OwnStreams) -> Self {
        Self { own: Some(own), ..self }
    }

    /// Returns what it has done so far.
    pub(crate) fn standing(&self) -> SessionStanding {
        SessionStanding {
            streams: self.holdings.count(),
            delivered: self.metrics.messages_delivered.get(),
            rejected: self.metrics.messages_rejected.get(),
            problem: self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Notes why no streams can be taken over, and logs it once.
    fn note_problem(&self, error: Option<&TakeoverError>) {
        let problem = error.map(ToString::to_string);
        let mut noted = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match &problem {
            Some(problem) if noted.as_ref() != Some(problem) => {
                warn!(target: "fleet", "cannot take streams over at the moment: {problem}");
            }
            None if noted.is_some() => info!(target: "fleet", "streams can be taken over again"),
            _ => {}
        }
        *noted = problem;
    }

    /// Takes and delivers streams until nothing is left to do, or until it is stopped.
    ///
    /// # Errors
    ///
    /// If the depot or the scratch store can't be used. Streams that were taken are released as far as possible.
    pub(crate) fn run(
        &self,
        upstream: &Upstream,
        listener: &dyn ProgressListener,
    ) -> Result<FleetConclusion, TakeoverError> {
        let started = Instant::now();
        let connection = Connection::new(self.settings.monitor);
        let (feed, ended, round_stop) = (FeedState::default(), Shutdown::new(), Shutdown::new());
        self.dial.look(self.holdings.count());
        let (ending, fed) = std::thread::scope(|scope| {
            scope.spawn(|| self.keep_heads(&ended));
            scope.spawn(|| self.keep_dial(&feed, &ended));
            scope.spawn(|| monitor::run(&connection, upstream, self.settings.monitor, &ended));
            let feeding = scope.spawn(|| self.feed(&feed, &connection, &ended));
            scope.spawn(|| self.watch_over(&feed, (started, listener), &ended, &round_stop));
            let ends_all = EndsAll { ended: &ended, connection: &connection };
            let deliverer = Deliverer { session: self, feed: &feed, connection: &connection, upstream, started };
            let ending = deliverer.run(&ended, &round_stop);
            drop(ends_all);
            let fed = feeding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (ending, fed)
        });
        let reasons = self.reasons()?;
        let is_key_refused = {
            let held = self.scratch.store().condition()?.held;
            held.iter().any(|(_, hold)| hold.is_credential_refused())
        };
        let held = Filter { statuses: vec![MessageStatus::Held], ..Filter::default() };
        let held = self.scratch.store().backlog(&held)?.messages();
        let (totals, fed) = fed;
        let (ending, reason) = ending?;
        fed?;
        Ok(FleetConclusion {
            ending,
            delivered: self.metrics.messages_delivered.get(),
            rejected: self.metrics.messages_rejected.get(),
            held,
            requests: self.metrics.replay_requests.get(),
            seconds: started.elapsed().as_secs_f64(),
            reasons: reason.into_iter().chain(reasons).collect(),
            is_key_refused,
            with_earlier: self.settings.selection.with_earlier(&totals.behind_streams),
            totals,
        })
    }

    fn keep_heads(&self, ended: &Shutdown) {
        let interval = (self.settings.takeover_after / 90).clamp(Duration::from_millis(20), Duration::from_secs(1));
        while !ended.sleep(interval) {
            self.holdings.renew_due();
        }
    }

    /// Reads the dial, and writes into it how many streams share the pace, while any are delivered.
    fn keep_dial(&self, feed: &FeedState, ended: &Shutdown) {
        let timing = HeadTiming { takeover_after: self.settings.takeover_after };
        let mut noted = since_boot();
        while !ended.sleep(DIAL_TICK) {
            let held = self.holdings.count();
            let draining = feed.draining.load(Ordering::Acquire).saturating_add(held);
            if draining > 0 {
                self.dial.look_if_due(held);
            }
            // A depot that does not keep conditions could lose a person's hold to this write.
            let is_due = since_boot().saturating_sub(noted) >= timing.renew_interval();
            if !is_due || self.settings.single_replayer {
                continue;
            }
            noted = since_boot();
            if let Err(error) = self.dial.note_draining(draining) {
                debug!(target: "fleet", %error, "the number of streams that share the pace is not written");
            }
        }
    }

    /// Feeds until the session ends, then closes what is open.
    fn feed(
        &self,
        state: &FeedState,
        connection: &Connection,
        ended: &Shutdown,
    ) -> (FeedTotals, Result<(), TakeoverError>) {
        let _fails = FailsByPanic(state);
        let reader = StreamReader::new(self.depot.clone(), self.keys.identities.clone());
        let store = &**self.scratch.store();
        let importer = Importer {
            reader: reader.clone(),
            ledger: &self.ledger,
            store,
            sorter: RecordSorter {
                server: &self.settings.server,
                max_age: self.settings.max_age,
                selection: &self.settings.selection,
                keys: &self.keys.folder,
            },
        };
        let FleetReplaySettings { stage_bytes, takeover_after, .. } = self.settings;
        let mut feeder = Feeder {
            depot: &*self.depot,
            reader,
            holdings: &self.holdings,
            ledger: &self.ledger,
            importer,
            store,
            state,
            settings: FeedSettings { stage_bytes, takeover_after },
            keys: &self.keys.folder,
            own: self.own.as_ref(),
            progress: FeedProgress::new(takeover_after),
        };
        let now = Duration::from_millis(u64::try_from(now_ms()).unwrap_or(0));
        if let Err(error) = delete_outdated_records(&*self.depot, now) {
            debug!(target: "fleet", %error, "records of finished streams are deleted by the next replayer");
        }
        let mut errors = 0;
        let mut pause = Duration::ZERO;
        while !ended.sleep(pause) {
            let may_take = connection.availability() == Availability::Available;
            match feeder.step(may_take) {
                Ok(has_worked) => {
                    errors = 0;
                    self.note_problem(None);
                    pause = if has_worked { Duration::ZERO } else { PAUSE / 4 };
                }
                Err(error) => {
                    errors += 1;
                    self.note_problem(Some(&error));
                    if !self.settings.follows && (errors >= ERRORS_MAX || !is_passing(&error)) {
                        state.has_failed.store(true, Ordering::Release);
                        ended.sleep(Duration::MAX);
                        return (feeder.close().0, Err(error));
                    }
                    pause = ERROR_PAUSE;
                }
            }
        }
        feeder.close()
    }

    /// Reports progress; ends a round when the session is to end.
    fn watch_over(
        &self,
        feed: &FeedState,
        (started, listener): (Instant, &dyn ProgressListener),
        ended: &Shutdown,
        round_stop: &Shutdown,
    ) {
        let mut said = false;
        while !ended.sleep(PAUSE) {
            let held_for = self.dial.dial().held_for(since_boot());
            if let Some(left) = held_for.filter(|_| !said) {
                let left = crate::figures::short_duration(left);
                listener.note(&format!("the fleet is held for {left}: nothing is delivered; --resume ends that"));
            }
            said = held_for.is_some();
            let done = self.metrics.messages_delivered.get() + self.metrics.messages_rejected.get();
            listener.progress(done, feed.imported.load(Ordering::Acquire));
            if self.shutdown.is_requested() || self.is_time_over(started) {
                round_stop.request();
            }
        }
    }

    /// Returns how many more messages may be settled; `None` without a limit.
    fn limit_left(&self) -> Option<u64> {
        let settled = self.metrics.messages_delivered.get() + self.metrics.messages_rejected.get();
        self.settings.replay.limit.map(|limit| limit.saturating_sub(settled))
    }

    fn is_time_over(&self, started: Instant) -> bool {
        self.settings.timeout.is_some_and(|timeout| started.elapsed() >= timeout)
    }

    /// Returns why messages that were taken wait, for people.
    fn reasons(&self) -> Result<Vec<String>, StoreError> {
        let store = self.scratch.store();
        let mut reasons: Vec<String> =
            store.condition()?.held.into_iter().map(|(lane, hold)| format!("{lane}: {}", hold.reason)).collect();
        let stranded: u64 = store.stranded()?.iter().map(|stranded| stranded.messages).sum();
        if stranded > 0 {
            let messages = crate::figures::count(stranded, "message");
            reasons.push(format!("{messages} wait for a create that the server rejected"));
        }
        Ok(reasons)
    }
}

/// The part of a session that delivers.
struct Deliverer<'a> {
    session: &'a FleetReplay,
    feed: &'a FeedState,
    connection: &'a Connection,
    upstream: &'a Upstream,
    started: Instant,
}

impl Deliverer<'_> {
    /// Delivers until the session is to end; returns how it ended, and why if people should know.
    fn run(&self, ended: &Shutdown, round_stop: &Shutdown) -> Result<(FleetEnding, Option<String>), StoreError> {
        let session = self.session;
        let memory = Budget::new(session.settings.memory_budget);
        let (state, owner) = (ReplayState::default(), Owner::this_process("replay"));
        let filter = Filter::of_server(&session.settings.server);
        let dial = Some(session.dial.dial());
        let settings = ReplaySettings { filter, dial, ..session.settings.replay.clone() };
        let replayer = Replayer {
            store: &*session.spooled,
            upstream: self.upstream,
            connection: self.connection,
            settings: &settings,
            metrics: &session.metrics,
            state: &state,
            memory: &memory,
            workers_max: session.settings.workers_max,
            observer: None,
            shutdown: round_stop,
        };
        let mut errors = 0;
        loop {
            if session.shutdown.is_requested() {
                return Ok((FleetEnding::Interrupted, None));
            }
            if self.feed.has_failed.load(Ordering::Acquire) {
                return Ok((FleetEnding::Complete, None));
            }
            if session.is_time_over(self.started) {
                return Ok((FleetEnding::TimeOver, None));
            }
            let limit = session.limit_left();
            if limit == Some(0) {
                return Ok((FleetEnding::LimitReached, Some("the limit was reached".to_owned())));
            }
            if !self.connection.wait_until_available(PAUSE, round_stop) {
                let is_away = self.connection.availability() == Availability::Unavailable;
                if is_away && !session.settings.follows {
                    return Ok((FleetEnding::ServerAway, self.connection.state().reason));
                }
                continue;
            }
            // Before the round: what is fed while it runs may be missed by it.
            let was_idle = self.feed.is_idle.load(Ordering::Acquire);
            let imported = self.feed.imported.load(Ordering::Acquire);
            let limited = ReplaySettings { limit, ..settings.clone() };
            match self.round(&Replayer { settings: &limited, ..replayer }, &owner) {
                Ok(Some(DrainEnd::Empty | DrainEnd::NotDue { .. }) | None) => {
                    errors = 0;
                    if was_idle && !session.settings.follows && self.feed.is_idle.load(Ordering::Acquire) {
                        return Ok((FleetEnding::Complete, None));
                    }
                    if self.feed.imported.load(Ordering::Acquire) == imported {
                        ended.sleep(PAUSE);
                    }
                }
                Ok(Some(DrainEnd::Held)) => {
                    errors = 0;
                    ended.sleep(PAUSE);
                }
                Ok(Some(_)) => errors = 0,
                Err(error) if session.settings.follows || is_retried(&error) && errors < ERRORS_MAX => {
                    errors += u32::from(session.holdings.may_send().is_ok());
                    warn!(target: "fleet", "cannot deliver at the moment: {error}");
                    ended.sleep(ERROR_PAUSE / 4);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Drains what is due; `None` if nothing may be sent or nothing waits.
    fn round(&self, replayer: &Replayer<'_>, owner: &Owner) -> Result<Option<DrainEnd>, StoreError> {
        let session = self.session;
        session.holdings.may_send()?;
        if session.ledger.staged().messages == 0 {
            return Ok(None);
        }
        if session.dial.dial().held_for(since_boot()).is_some() {
            return Ok(Some(DrainEnd::Held));
        }
        let _round = self.feed.round.lock().unwrap_or_else(PoisonError::into_inner);
        let end = replayer.drain(owner)?;
        debug!(target: "fleet", ?end, "round ended");
        Ok(Some(end))
    }
}

/// Checks that two replayers can't own one stream.
///
/// # Errors
///
/// [`TakeoverError::NotExclusive`] if the depot ignores conditions and others may replay as well.
pub(crate) fn ensure_exclusive(depot: &dyn Depot, single_replayer: bool) -> Result<(), TakeoverError> {
    if single_replayer {
        return Ok(());
    }
    let proofs = prove(depot)?;
    if proofs.are_conditions_kept() {
        return Ok(());
    }
    let reason = match (proofs.creates_kept, proofs.replaces_kept) {
        (false, _) => "several callers created the same object",
        (_, Some(false)) => "several callers replaced the same version of an object",
        (_, _) => "we may not read what we write there, so it can't be known",
    };
    Err(TakeoverError::NotExclusive { depot: depot.describe().url, reason: reason.to_owned() })
}

/// Returns whether the same may work a moment later.
fn is_passing(error: &TakeoverError) -> bool {
    match error {
        TakeoverError::Depot(error) => error.is_passing(),
        TakeoverError::Store(error) => is_retried(error),
        _ => false,
    }
}

fn is_retried(error: &StoreError) -> bool {
    use StoreError::{Busy, DepotAway, LeaseHeld, LeaseLost};
    matches!(error, DepotAway { .. } | LeaseLost | LeaseHeld { .. } | Busy { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::ModelDepot;

    #[test]
    fn a_depot_that_ignores_conditions_is_not_replayed_by_two() {
        let depot = ModelDepot::new();
        ensure_exclusive(&depot, false).expect("this depot keeps conditions");
        depot.set(|faults| faults.ignores_conditions = true);
        let refused = ensure_exclusive(&depot, false);
        assert!(matches!(refused, Err(TakeoverError::NotExclusive { .. })), "a stream would have two senders");
        ensure_exclusive(&depot, true).expect("the user said that there is one replayer");
    }
}
