//! The agent's own collector: it samples the backlog and the counters, and gathers and caches overviews.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tracing::{debug, warn};

use super::edges::EdgeRegistry;
use super::full_watch::FullWatch;
use super::lanes::{LaneOverview, LargestLanes, held_for};
use super::page::{CommandOptions, file_system};
use super::projects::{ProjectCensus, ProjectsOverview};
use super::rejections::RejectionsOverview;
use super::store::{FullOverview, LiveWrites, StoreOverview, elsewhere, waiting_sums};
use super::{
    AgentOverview, EdgesOverview, ElsewhereOverview, FleetOverview, HubOverview, Overview, PageDetails, ReplayOverview,
    ServerOverview, connection_word, pace_of,
};
use crate::delivery::eta::{Situation, Throughput, eta};
use crate::delivery::pacing::PaceSettings;
use crate::message::Server;
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::protocol::hub::{Edge, Hub, Reached};
use crate::shutdown::Shutdown;
use crate::store::full_state::remedies;
use crate::store::slot::{SlotState, StoreSlot};
use crate::store::{Backlog, Condition, Filter, KeyState, LaneWork, ReplayRecord, Store, StoreError, now_ms};
use crate::telemetry::history::{self, Away, DrainRate, History, Sample};
use crate::telemetry::history_file::HistoryFile;
use crate::telemetry::metrics::Metrics;

/// How many replays are remembered.
const REPLAYS_MAX: usize = 10;
/// How many lanes an overview lists, those with the oldest messages first.
const LANES_MAX: usize = 200;
/// How long an overview is cached.
const CACHED_FOR: Duration = Duration::from_secs(1);

/// The message about a client that speaks gRPC.
const GRPC_CLIENT: &str = "an OpenTelemetry exporter sends over gRPC, which neither Opik nor this agent understands, and its \
                           data is lost: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf for it";
/// Below this much free space no history file is created.
const HISTORY_DISK_FREE_MIN: u64 = 64 << 20;

/// The sources of an overview.
pub struct OverviewSources {
    /// The store, which may come and go.
    pub slot: Arc<StoreSlot>,
    /// The connection to the server.
    pub connection: Arc<Connection>,
    /// The agent's counters.
    pub metrics: Arc<Metrics>,
    /// The pace that the user asked for.
    pub pace: PaceSettings,
    /// The base URL of the server's API.
    pub server_url: String,
    /// The address that the agent listens on.
    pub listen: String,
    /// The limits that follow from too few file descriptors, and what to do.
    pub files_problem: Option<String>,
    /// Returns the state of the copies in the depot, if there is one.
    pub fleet: Option<FleetSource>,
    /// The store's file: the history is kept beside it.
    pub store_path: PathBuf,
    /// The option that names the store in a command, with its value.
    pub store_option: String,
}

/// Returns the state of the copies in the depot.
pub(crate) type FleetSource = Box<dyn Fn() -> FleetOverview + Send + Sync>;

/// Gathers overviews of a running agent.
pub struct OverviewCollector {
    sources: OverviewSources,
    server: Server,
    started: Instant,
    history: History,
    replays: Mutex<VecDeque<ReplayRecord>>,
    full: FullWatch,
    edges: EdgeRegistry,
    /// Whether a client that speaks gRPC has sent something.
    met_grpc: AtomicBool,
    projects: ProjectCensus,
    rejections: Mutex<Option<KnownRejections>>,
    cached: Mutex<Option<(Instant, Arc<Overview>)>>,
}

/// The cached answers of the server.
struct KnownRejections {
    at: Instant,
    /// How many messages it had rejected then, by answer.
    of: Vec<(Option<u16>, u64)>,
    found: RejectionsOverview,
}

/// The reads from the store for one overview.
struct StoreReading {
    backlog: Backlog,
    condition: Condition,
    lanes: Vec<LaneWork>,
    elsewhere: Vec<ElsewhereOverview>,
    projects: ProjectsOverview,
    rejections: RejectionsOverview,
}

impl OverviewCollector {
    /// Returns the collector of an agent that starts now.
    pub fn new(sources: OverviewSources) -> Self {
        Self {
            server: Server::new(&sources.server_url),
            full: FullWatch::new(sources.metrics.clone()),
            sources,
            started: Instant::now(),
            history: History::default(),
            replays: Mutex::default(),
            edges: EdgeRegistry::default(),
            met_grpc: AtomicBool::default(),
            projects: ProjectCensus::default(),
            rejections: Mutex::default(),
            cached: Mutex::default(),
        }
    }

    /// Returns the limits that follow from too few file descriptors, and what to do.
    pub fn files_problem(&self) -> Option<&str> {
        self.sources.files_problem.as_deref()
    }

    /// Takes a client that speaks gRPC, and logs the first one: neither Opik nor the agent understands it.
    pub fn met_grpc_client(&self) {
        if !self.met_grpc.swap(true, Ordering::Relaxed) {
            warn!(target: "intake", "{GRPC_CLIENT}");
        }
    }

    /// Returns what a client sends that nobody understands, and what to do.
    pub fn client_problem(&self) -> Option<&'static str> {
        self.met_grpc.load(Ordering::Relaxed).then_some(GRPC_CLIENT)
    }

    /// Takes samples until shutdown.
    pub fn run(&self, shutdown: &Shutdown) {
        let file = HistoryFile::beside(&self.sources.store_path, self.server.base_url());
        match file.read(now_ms()) {
            Ok(past) => self.history.restore(past),
            Err(error) => debug!(target: "opik_offline", "the plots begin anew, their history cannot be read: {error}"),
        }
        let mut is_first = true;
        loop {
            let own = Filter::of_server(&self.server);
            let read = self.sources.slot.with(|store| Ok((store.backlog(&own)?, store.condition()?)));
            if let Ok((_, condition)) = &read {
                self.full.measured(&self.sources.slot, condition);
                self.note_last_replay(condition);
            }
            let (sample, minute) = self.history.note(self.sample(read.as_ref().ok().map(|(backlog, _)| backlog)));
            // An agent that soon ends, or has no store, leaves no file.
            if let Ok((backlog, condition)) = &read
                && !is_first
            {
                let has_room = condition.full.is_none()
                    && condition.disk_free_bytes.is_none_or(|free| free >= HISTORY_DISK_FREE_MIN);
                if let Err(error) = file.write(&sample, &minute, has_room) {
                    debug!(target: "opik_offline", "cannot keep the history of the status page: {error}");
                }
                self.count_projects(backlog, condition);
            }
            is_first = false;
            if shutdown.sleep(history::FINE_INTERVAL) {
                return;
            }
        }
    }

    /// Counts what is stored by project, if somebody looks.
    fn count_projects(&self, backlog: &Backlog, condition: &Condition) {
        if condition.encryption.key != KeyState::Usable {
            return;
        }
        let stored = (backlog.waiting(), backlog.rejected() + backlog.held());
        let counted = |store: &dyn Store| self.projects.count_if_due(store, &self.server, stored);
        if let Err(error) = self.sources.slot.with(counted) {
            debug!(target: "opik_offline", "cannot count the messages of each project: {error}");
        }
    }

    /// Returns the watch over whether the store is full.
    pub fn full(&self) -> &FullWatch {
        &self.full
    }

    /// Returns the edges of this agent.
    pub fn edges(&self) -> EdgesOverview {
        self.edges.overview(Instant::now())
    }

    /// Takes an edge that pings.
    pub fn met_edge(&self, edge: Edge) {
        self.edges.note(edge, Instant::now());
    }

    /// Returns how many messages waited at the last sample, which is at most a few seconds old. Reads no store: a ping
    /// must not wait for a disk.
    pub fn waiting(&self) -> Option<u64> {
        self.history.last()?.waiting
    }

    /// Returns how this agent describes itself to its edges.
    pub fn hub(&self) -> Hub {
        let state = self.sources.connection.state();
        Hub {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            server_url: Some(self.sources.server_url.clone()),
            server: match state.availability {
                Availability::Unknown => Reached::Unknown,
                Availability::Available => Reached::Available,
                Availability::Unavailable => Reached::Unavailable,
            },
            since_ms: state.since.duration_since(UNIX_EPOCH).ok().map(millis),
            waiting: self.waiting(),
        }
    }

    /// Returns how long the agent has been running.
    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns an overview that is at most a second old.
    pub fn overview(&self) -> Arc<Overview> {
        // Locked while it is gathered: concurrent requests share one overview.
        let mut cached = lock(&self.cached);
        if let Some((_, overview)) = cached.as_ref().filter(|(gathered, _)| gathered.elapsed() < CACHED_FOR) {
            return overview.clone();
        }
        let overview = Arc::new(self.gather());
        *cached = Some((Instant::now(), overview.clone()));
        overview
    }

    fn gather(&self) -> Overview {
        let now = now_ms();
        let read = self.sources.slot.try_with(|store| {
            let own = Filter::of_server(&self.server);
            let elsewhere = elsewhere(&store.backlog(&Filter::default())?, &self.server);
            let (backlog, condition) = (store.backlog(&own)?, store.condition()?);
            let stored = (backlog.waiting(), backlog.rejected() + backlog.held());
            // Paths and the server's answers are encrypted, too.
            let is_readable = condition.encryption.key == KeyState::Usable;
            let projects =
                if is_readable { self.projects.ask(store, &self.server, stored)? } else { Default::default() };
            let rejections = if is_readable { self.rejections(store, &backlog)? } else { Default::default() };
            Ok(StoreReading { lanes: store.lanes(&own, now)?, backlog, condition, elsewhere, projects, rejections })
        });
        let sample = self.sample(read.as_ref().ok().map(|reading| &reading.backlog));
        let mut history = self.history.recent();
        history.push(sample);
        let rates = history::rates(&history);
        let (mut store, lanes) = match &read {
            Err(error) => (self.unusable(error), &[][..]),
            Ok(reading) => (self.usable(reading), &reading.lanes[..]),
        };
        store.moved_stores = self.sources.slot.moved().iter().map(|path| path.display().to_string()).collect();
        let held_by_a_person = store.replay_hold.as_ref().map(|hold| Duration::from_secs(hold.seconds_left));
        let situation = self.situation(&store, held_for(lanes, now).max(held_by_a_person), &history);
        Overview {
            schema_version: 1,
            at_ms: now,
            agent: self.agent(),
            server: self.server_overview(),
            fleet: self.sources.fleet.as_ref().map(|fleet| fleet()),
            eta: store.usable.then(|| eta(&situation).into()),
            store,
            rates,
            forwarded_refused: Some(self.sources.metrics.refusals.get()),
            lanes: lanes.iter().take(LANES_MAX).map(LaneOverview::of).collect(),
            lanes_total: lanes.len() as u64,
            edges: self.edges(),
            replays: lock(&self.replays).iter().map(ReplayOverview::of).collect(),
            page: self.page(read.as_ref().ok(), sample),
            history,
        }
    }

    /// Returns what only the page shows.
    fn page(&self, reading: Option<&StoreReading>, now: Sample) -> PageDetails {
        let options =
            CommandOptions { db: self.sources.store_option.clone(), server: self.server.base_url().to_owned() };
        let past = self.history.past(now);
        let file_system = file_system(&self.sources.store_path);
        let Some(reading) = reading else {
            return PageDetails { past, options, file_system, ..PageDetails::default() };
        };
        let (projects, rejections) = (reading.projects.clone(), reading.rejections.clone());
        PageDetails { past, lanes: LargestLanes::of(&reading.lanes), projects, rejections, options, file_system }
    }

    /// Returns the server's answers to dead letters, cached until their number changes, or for a few seconds.
    fn rejections(&self, store: &dyn Store, backlog: &Backlog) -> Result<RejectionsOverview, StoreError> {
        const READ_EVERY: Duration = Duration::from_secs(10);
        if backlog.rejected() == 0 {
            return Ok(RejectionsOverview::default());
        }
        let mut known = lock(&self.rejections);
        let is_known =
            |known: &KnownRejections| known.of == backlog.rejected_by_answer && known.at.elapsed() < READ_EVERY;
        if let Some(known) = known.as_ref().filter(|known| is_known(known)) {
            return Ok(known.found.clone());
        }
        let found = RejectionsOverview::read(store, &self.server)?;
        let of = backlog.rejected_by_answer.clone();
        *known = Some(KnownRejections { at: Instant::now(), of, found: found.clone() });
        Ok(found)
    }

    fn agent(&self) -> AgentOverview {
        AgentOverview {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.sources.listen.clone(),
            uptime_seconds: self.uptime().as_secs(),
            files_problem: self.sources.files_problem.clone(),
            client_problem: self.client_problem().map(str::to_owned),
        }
    }

    fn server_overview(&self) -> ServerOverview {
        let state = self.sources.connection.state();
        ServerOverview {
            url: self.sources.server_url.clone(),
            connection: connection_word(state.availability),
            since_ms: Some(state.since.duration_since(UNIX_EPOCH).map_or(0, |since| millis(since) as i64)),
            reason: state.reason,
            hub: self.sources.connection.hub().map(HubOverview::from),
        }
    }

    fn usable(&self, reading: &StoreReading) -> StoreOverview {
        let StoreReading { backlog, condition, elsewhere, .. } = reading;
        self.note_last_replay(condition);
        let refused_writes = self.full.since_made(condition);
        self.full.measured(&self.sources.slot, condition);
        let mut store = StoreOverview { elsewhere: elsewhere.clone(), ..StoreOverview::usable(backlog, condition) };
        store.full = self.full_overview(&store, condition);
        store.refused_writes = refused_writes;
        store
    }

    fn unusable(&self, error: &StoreError) -> StoreOverview {
        let refused_while_unusable = match self.sources.slot.state() {
            SlotState::Unavailable { refused, .. } => refused,
            SlotState::Open => 0,
        };
        let live_writes = LiveWrites::of(&self.sources.slot, &self.server).word();
        let unproven_since_ms = match error {
            StoreError::Unproven { .. } => self.sources.slot.unproven().map(|unproven| unproven.since_ms),
            _ => None,
        };
        let reason = Some(error.to_string());
        StoreOverview { reason, unproven_since_ms, live_writes, refused_while_unusable, ..StoreOverview::default() }
    }

    /// Returns the option that names the store, as commands are continued with it.
    fn store_option(&self) -> String {
        match self.sources.store_option.as_str() {
            "" => String::new(),
            option => format!(" {option}"),
        }
    }

    /// Returns how the store is full: as writes have found it, or as it measures itself before any has.
    fn full_overview(&self, store: &StoreOverview, condition: &Condition) -> Option<FullOverview> {
        let episode = self.full.episode();
        let fullness = episode.as_ref().map(|episode| &episode.fullness).or(condition.full.as_ref())?;
        Some(FullOverview {
            since_ms: episode.as_ref().map(|episode| episode.since_ms),
            limit: fullness.limit.name().to_owned(),
            reason: fullness.reason.clone(),
            refused_writes: episode.as_ref().map_or(0, |episode| episode.refused),
            passed_on_writes: episode.as_ref().map_or(0, |episode| episode.passed_on),
            remedies: remedies(fullness.limit, store.waiting, store.rejected, &self.store_option()),
        })
    }

    /// Returns what an estimate of the time to go rests on; the last sample of the history is now.
    fn situation(&self, store: &StoreOverview, held_for: Option<Duration>, history: &[Sample]) -> Situation {
        let available = history.last().and_then(|sample| sample.available);
        let drained = history::drain_rate(history);
        Situation {
            waiting: store.waiting,
            available,
            is_replayed: true,
            pace: self.sources.pace,
            drained: drained.map(|DrainRate { per_second, spread, .. }| Throughput { per_second, spread }),
            stored_per_second: drained.map_or(0.0, |drained| drained.stored_per_second),
            last_per_second: lock(&self.replays).iter().find_map(pace_of),
            latency: self.sources.connection.latency(),
            held_for,
            is_stalled: history::is_stalled(history),
        }
    }

    fn sample(&self, backlog: Option<&Backlog>) -> Sample {
        let OverviewSources { connection, metrics, .. } = &self.sources;
        let state = connection.state();
        Sample {
            at_ms: now_ms(),
            uptime_ms: millis(self.uptime()),
            available: match state.availability {
                Availability::Unknown => None,
                Availability::Available => Some(true),
                Availability::Unavailable => Some(false),
            },
            since_ms: state.since.duration_since(UNIX_EPOCH).map_or(0, |since| millis(since) as i64),
            away: Away::default(),
            waiting: backlog.map(Backlog::waiting),
            waiting_bytes: backlog.map(|backlog| waiting_sums(backlog).2),
            kept: backlog.map(Backlog::rejected),
            forwarded: metrics.requests_forwarded.get(),
            stored: metrics.messages_registered.get(),
            delivered: metrics.messages_delivered.get(),
            rejected: metrics.messages_rejected.get(),
        }
    }

    /// Remembers the last replay. If it is known and has made progress since, it is updated.
    fn note_last_replay(&self, condition: &Condition) {
        let Some(record) = &condition.last_replay else { return };
        let mut replays = lock(&self.replays);
        match replays.iter_mut().find(|known| known.started_at_ms == record.started_at_ms && known.role == record.role)
        {
            Some(known) => *known = record.clone(),
            None => {
                replays.push_front(record.clone());
                replays.truncate(REPLAYS_MAX);
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Every change is one assignment, so the value is whole even after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
