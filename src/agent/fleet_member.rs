//! An agent that replays the fleet (`fleet_replay`): beside its own messages it delivers those of agents that are gone.
//!
//! The session is that of `replay --fleet --follow`, on a thread of the agent, with a scratch store and a connection
//! monitor of its own. If it can't begin, for example because the depot is away, the agent serves its clients, and
//! retries with a backoff.
//!
//! # Invariants
//!
//! - The agent's own streams are never taken: neither while it lives, nor once it has closed their heads at its end.
//! - It stops with the agent: it releases its streams before the agent closes its own, so that another replayer
//!   continues at once.
//! - It has no liveness check: an agent that serves its clients is not ended because of other agents' streams.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::depot::Depot;
use crate::fleet::ledger::AgentLedger;
use crate::fleet::names::StreamId;
use crate::fleet::stream_head::this_process;
use crate::overview::FleetReplayOverview;
use crate::replay::session::ProgressListener;
use crate::shutdown::Shutdown;
use crate::store::StreamState;
use crate::store::slot::StoreSlot;
use crate::takeover::error::TakeoverError;
use crate::takeover::keys::FleetKeys;
use crate::takeover::session::{FleetReplay, FleetReplaySettings};
use crate::takeover::standing::{OwnStreams, SessionStanding};
use crate::telemetry::metrics::Metrics;
use crate::upstream::Upstream;

/// The pause before the first retry of a session that could not begin; the backoff doubles it.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between retries.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The pause where the depot can't have several replayers: only a person changes that.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);

/// How an agent replays the fleet.
#[derive(Clone, Debug)]
pub(crate) struct FleetMemberSettings {
    /// The files with the keys that open what is sealed.
    pub identity_files: Vec<PathBuf>,
    /// The folder with the keys that messages only name.
    pub credentials_dir: Option<PathBuf>,
    /// How streams are taken and delivered.
    pub session: FleetReplaySettings,
}

/// The state of the replay, over all its sessions.
#[derive(Debug, Default)]
pub(super) struct MemberStanding {
    state: Mutex<FleetReplayOverview>,
}

impl MemberStanding {
    fn lock(&self) -> MutexGuard<'_, FleetReplayOverview> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns it for people.
    pub(super) fn overview(&self) -> FleetReplayOverview {
        self.lock().clone()
    }

    /// Returns how many streams are held.
    pub(super) fn streams(&self) -> u64 {
        self.lock().streams
    }

    /// Adds what a session has done to what was done before it.
    fn note(&self, before: &FleetReplayOverview, session: SessionStanding) {
        *self.lock() = FleetReplayOverview {
            problem: session.problem,
            streams: session.streams,
            delivered: before.delivered + session.delivered,
            rejected: before.rejected + session.rejected,
        };
    }

    /// Notes that there is no session; returns whether the reason is new.
    fn failed(&self, problem: String) -> bool {
        let mut state = self.lock();
        let is_new = state.problem.as_ref() != Some(&problem);
        *state = FleetReplayOverview { problem: Some(problem), streams: 0, ..state.clone() };
        is_new
    }
}

/// The replay of a fleet by an agent.
pub(super) struct FleetMember {
    pub settings: FleetMemberSettings,
    pub depot: Arc<dyn Depot>,
    pub upstream: Arc<Upstream>,
    pub slot: Arc<StoreSlot>,
    pub ledger: Arc<AgentLedger>,
    pub metrics: Arc<Metrics>,
    pub standing: Arc<MemberStanding>,
}

impl FleetMember {
    /// Replays until the agent stops.
    pub(super) fn run(&self, stopping: &Shutdown) {
        let mut failures = 0;
        let mut pause = Duration::ZERO;
        while !stopping.sleep(pause) {
            let ended = self.session(stopping);
            pause = PAUSE;
            let Err(error) = ended else {
                failures = 0;
                continue;
            };
            failures += 1;
            pause = pause_after(failures, &error);
            let problem = match &error {
                TakeoverError::NotExclusive { .. } => {
                    format!("{error}; where only one replayer ever runs, set fleet_single_replayer")
                }
                _ => error.to_string(),
            };
            if self.standing.failed(problem.clone()) {
                warn!(target: "fleet", "streams of other agents are not replayed now, which is tried again: {problem}");
            }
            self.metrics.fleet_streams_held.set(0.0);
        }
    }

    /// Runs one session, which ends when the agent stops, or because of an error.
    fn session(&self, stopping: &Shutdown) -> Result<(), TakeoverError> {
        let FleetMemberSettings { identity_files, credentials_dir, session } = &self.settings;
        let keys = FleetKeys::read(&*self.depot, identity_files, credentials_dir.as_deref())?;
        let owner = this_process(&uuid::Uuid::now_v7().simple().to_string());
        let session = FleetReplay::open(self.depot.clone(), keys, owner, session.clone(), stopping)?;
        let session = session.sparing(self.own_streams());
        info!(target: "fleet", "replays the streams of agents that are gone from the depot {}", self.depot.describe());
        let watch = SessionWatch { member: self, session: &session, before: self.standing.overview() };
        let ended = session.run(&self.upstream, &watch);
        watch.progress(0, 0);
        let totals = ended?.totals;
        debug!(target: "fleet", finished = totals.finished, released = totals.given_back, "the replay of streams ended");
        Ok(())
    }

    /// Returns what looks up the streams of this agent: those of its store, and one that it is deleting.
    fn own_streams(&self) -> OwnStreams {
        let (slot, ledger) = (self.slot.clone(), self.ledger.clone());
        Arc::new(move || {
            let deleting = ledger.standing().stream;
            let records = slot.with(|store| store.streams())?;
            let own = records.iter().filter(|record| record.state == StreamState::Open).map(|record| record.stream);
            Ok(own.chain(deleting).map(StreamId::new).collect())
        })
    }
}

/// Notes the progress of a session.
struct SessionWatch<'a> {
    member: &'a FleetMember,
    session: &'a FleetReplay,
    /// The state at its beginning.
    before: FleetReplayOverview,
}

impl ProgressListener for SessionWatch<'_> {
    fn note(&self, text: &str) {
        info!(target: "fleet", "{text}");
    }

    fn progress(&self, _done: u64, _total: u64) {
        let (standing, metrics) = (&self.member.standing, &self.member.metrics);
        standing.note(&self.before, self.session.standing());
        let now = standing.overview();
        metrics.fleet_streams_held.set(now.streams as f64);
        metrics.fleet_replayed_messages.raise_to(now.delivered);
        metrics.fleet_replay_rejected_messages.raise_to(now.rejected);
    }
}

/// Returns how long after this many failures in a row, of which this is the last, the next session begins.
fn pause_after(failures: u32, error: &TakeoverError) -> Duration {
    if matches!(error, TakeoverError::NotExclusive { .. }) {
        return REFUSED_PAUSE;
    }
    PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depot_that_is_away_is_asked_again_soon_and_then_less_often() {
        let away = TakeoverError::NoFleetFile { depot: "file:///srv/depot".to_owned() };
        let pauses = [1, 2, 3, 7, 1000].map(|failures| pause_after(failures, &away).as_secs());
        assert_eq!(pauses, [1, 2, 4, 60, 60]);
        let refused = TakeoverError::NotExclusive { depot: String::new(), reason: String::new() };
        assert_eq!(pause_after(1, &refused), REFUSED_PAUSE, "each proof writes objects that nobody needs");
    }

    #[test]
    fn counts_of_a_session_are_added_to_those_before_it_and_a_problem_is_new_once() {
        let standing = MemberStanding::default();
        let session = |delivered| SessionStanding { streams: 2, delivered, rejected: 1, problem: None };
        standing.note(&FleetReplayOverview::default(), session(5));
        assert!(standing.failed("the depot is away".to_owned()));
        assert!(!standing.failed("the depot is away".to_owned()), "it would be logged at every try");
        let before = standing.overview();
        assert_eq!((before.streams, before.delivered), (0, 5), "nothing is held without a session");
        standing.note(&before, session(0));
        standing.note(&before, session(4));
        let now = standing.overview();
        assert_eq!(
            (now.delivered, now.rejected, now.problem),
            (9, 2, None),
            "delivered messages are lost or counted twice"
        );
    }
}
